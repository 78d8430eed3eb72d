//! HTTP/2 frames and header blocks (RFC 9113, RFC 7541), written byte by byte: no library would send
//! what an attacker sends.

/// Starts a connection on the client's side.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Length of a frame's header.
const FRAME_HEADER: usize = 9;
/// Identifier of `SETTINGS_INITIAL_WINDOW_SIZE`.
const INITIAL_WINDOW_SIZE: u16 = 4;

/// `HEADERS` and `DATA`: the peer sends nothing more on this stream.
pub(super) const END_STREAM: u8 = 0x1;
/// `HEADERS`: no continuation follows.
pub(super) const END_HEADERS: u8 = 0x4;

/// Types of frames.
pub(super) mod kind {
    pub(crate) const HEADERS: u8 = 1;
    pub(crate) const RST_STREAM: u8 = 3;
    pub(crate) const SETTINGS: u8 = 4;
    pub(crate) const GOAWAY: u8 = 7;
}

/// Appends a frame.
pub(super) fn push(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    out.extend_from_slice(&length.to_be_bytes()[1..]);
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
}

/// The first bytes of a connection on which the server may send `window` bytes of each response.
pub(super) fn opening(window: u32) -> Vec<u8> {
    let mut out = PREFACE.to_vec();
    let mut setting = INITIAL_WINDOW_SIZE.to_be_bytes().to_vec();
    setting.extend_from_slice(&window.to_be_bytes());
    push(&mut out, kind::SETTINGS, 0, 0, &setting);
    out
}

/// A header block without Huffman coding.
#[derive(Debug, Clone, Default)]
pub(super) struct HeaderBlock(Vec<u8>);

impl HeaderBlock {
    /// Appends an entry of the static or dynamic table by its index.
    pub(super) fn indexed(mut self, index: u8) -> Self {
        self.integer(index.into(), 7, 0x80);
        self
    }

    /// Appends a field whose name is in the static table, without adding it to the dynamic table.
    pub(super) fn literal(mut self, name_index: u8, value: &str) -> Self {
        self.integer(name_index.into(), 4, 0);
        self.text(value);
        self
    }

    /// Appends a field and adds it to the dynamic table, where its index is then 62.
    pub(super) fn added(mut self, name: &str, value: &str) -> Self {
        self.0.push(0x40);
        self.text(name);
        self.text(value);
        self
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    fn text(&mut self, text: &str) {
        self.integer(text.len(), 7, 0);
        self.0.extend_from_slice(text.as_bytes());
    }

    /// Appends an integer with a prefix of `bits` bits; `pattern` fills the rest of its first byte.
    fn integer(&mut self, value: usize, bits: u8, pattern: u8) {
        let most = (1_usize << bits) - 1;
        if value < most {
            self.0.push(pattern | low_byte(value));
            return;
        }
        self.0.push(pattern | low_byte(most));
        let mut rest = value - most;
        while rest >= 0x80 {
            self.0.push(low_byte(rest & 0x7f) | 0x80);
            rest >>= 7;
        }
        self.0.push(low_byte(rest));
    }
}

fn low_byte(value: usize) -> u8 {
    u8::try_from(value).unwrap_or(u8::MAX)
}

/// Cuts the bytes of a connection into frames.
#[derive(Debug, Default)]
pub(super) struct FrameReader(Vec<u8>);

impl FrameReader {
    /// Appends bytes that were read.
    pub(super) fn add(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// Removes the next frame; returns its type and its stream.
    pub(super) fn next(&mut self) -> Option<(u8, u32)> {
        let header: [u8; FRAME_HEADER] = self.0.get(..FRAME_HEADER)?.try_into().ok()?;
        let [l0, l1, l2, kind, _, s0, s1, s2, s3] = header;
        let length = usize::try_from(u32::from_be_bytes([0, l0, l1, l2])).ok()?;
        if self.0.len() < FRAME_HEADER + length {
            return None;
        }
        self.0.drain(..FRAME_HEADER + length);
        Some((kind, u32::from_be_bytes([s0, s1, s2, s3])))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_are_those_of_the_rfc() {
        // RFC 7541, C.1.1 and C.1.2.
        let mut block = HeaderBlock::default();
        block.integer(10, 5, 0);
        block.integer(1337, 5, 0);
        assert_eq!(block.bytes(), [10, 31, 154, 10]);
    }

    #[test]
    fn reader_waits_for_a_whole_frame() {
        let mut bytes = Vec::new();
        push(&mut bytes, kind::RST_STREAM, 0, 3, &[0, 0, 0, 8]);
        push(&mut bytes, kind::GOAWAY, 0, 0, &[0; 8]);
        let mut reader = FrameReader::default();
        reader.add(&bytes[..12]);
        assert_eq!(reader.next(), None);
        reader.add(&bytes[12..]);
        assert_eq!(reader.next(), Some((kind::RST_STREAM, 3)));
        assert_eq!(reader.next(), Some((kind::GOAWAY, 0)));
        assert_eq!(reader.next(), None);
    }
}
