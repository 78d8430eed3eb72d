//! All requests of one VM, taken out by value for the time of an event.

use std::collections::BTreeMap;

use super::stream::Stream;
use crate::effect::StreamId;

/// The requests of one VM. A slot is empty while its stream is taken out.
#[derive(Debug, Default)]
pub(super) struct Streams {
    slots: BTreeMap<StreamId, Option<Box<Stream>>>,
    /// Paused streams among those that are not taken out.
    waiting: usize,
}

impl Streams {
    pub(super) fn contains(&self, id: StreamId) -> bool {
        self.slots.contains_key(&id)
    }

    /// Number of paused streams.
    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }

    /// Takes a stream out, to be returned with [`Streams::put`].
    pub(super) fn take(&mut self, id: StreamId) -> Option<Box<Stream>> {
        let stream = self.slots.get_mut(&id)?.take()?;
        self.waiting -= usize::from(stream.is_waiting());
        Some(stream)
    }

    /// Adds a stream, or puts one back.
    pub(super) fn put(&mut self, stream: Box<Stream>) {
        self.waiting += usize::from(stream.is_waiting());
        self.slots.insert(stream.id, Some(stream));
    }

    /// Removes a stream that has ended.
    pub(super) fn remove(&mut self, id: StreamId) -> Option<Box<Stream>> {
        let stream = self.take(id);
        self.slots.remove(&id);
        stream
    }

    /// A stream whose state does not change.
    pub(super) fn get_mut(&mut self, id: StreamId) -> Option<&mut Stream> {
        self.slots.get_mut(&id)?.as_deref_mut()
    }

    /// Streams that have waited past their deadline. O(streams), but only while any waits.
    pub(super) fn overdue(&self, now_ns: u64) -> Vec<StreamId> {
        if self.waiting == 0 {
            return Vec::new();
        }
        let streams = self.slots.values().flatten();
        streams
            .filter(|stream| stream.deadline_ns().is_some_and(|deadline| now_ns >= deadline))
            .map(|stream| stream.id)
            .collect()
    }
}

#[cfg(test)]
impl Streams {
    pub(super) fn get(&self, id: StreamId) -> Option<&Stream> {
        self.slots.get(&id)?.as_deref()
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }
}
