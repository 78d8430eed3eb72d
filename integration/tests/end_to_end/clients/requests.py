"""What a user of Python writes, by `requests`."""
import sys

url, ca, key, packages = sys.argv[1:]
sys.path.insert(0, packages)
import requests

session = requests.Session()
session.headers["Authorization"] = f"Bearer {key}"


def ask(method, path, **more):
    # Said per request, because REQUESTS_CA_BUNDLE goes before what the session says.
    answer = session.request(method, url + path, timeout=30, verify=ca, **more)
    return answer.status_code, answer.content, answer.headers


print("requests", requests.__version__)

at = {"p": "python", "c": "1.1.1/1.1.1/1.1.1"}
text = "ünïcode 🙂 & 100 % + more\r\n".encode()
# Parameters are encoded by the library: %2F in coordinates, + for spaces.
status, body, _ = ask("POST", "/api/v2/update", params=at, data=text)
assert (status, body) == (200, b"Updated %d bytes" % len(text)), (status, body)
status, body, head = ask("GET", "/api/v2/select", params=at)
assert (status, body) == (200, text), (status, body)
assert head["Content-Type"].lower() == "text/plain; charset=utf-8", head["Content-Type"]
status, body, _ = ask("GET", "/api/v2/insert", params={**at, "s": " a b+c"})
assert status == 200, (status, body)
status, body, _ = ask("GET", "/api/v2/select", params=at)
assert body == text + b" a b+c", body
status, body, _ = ask("DELETE", "/api/v2/delete", params=at)
assert status == 200, (status, body)
# A generator is sent in chunks, without a length.
status, body, _ = ask("POST", "/api/v2/update", params=at, data=iter([b"one ", b"two"]))
assert (status, body) == (200, b"Updated 7 bytes"), (status, body)
# What can't work says what would.
status, body, head = ask("POST", "/api/v2/update", params=at, files={"s": b"text"})
assert status in (400, 415) and b"form" in body, (status, body)
assert head["Content-Type"] == "application/problem+json", head["Content-Type"]
status, body, _ = ask("POST", "/api/v2/update", params={"p": "python"}, data=b"text")
assert status == 400 and b'"parameter":"c"' in body, (status, body)
print("all good")
