"""Calls as a Python user writes them with the library `requests`."""
import sys

url, ca, key, packages = sys.argv[1:]
sys.path.insert(0, packages)
import requests

session = requests.Session()
session.headers["Authorization"] = f"Bearer {key}"


def send(method, path, **options):
    # `verify` is set per request: REQUESTS_CA_BUNDLE has precedence over the session's value.
    response = session.request(method, url + path, timeout=30, verify=ca, **options)
    return response.status_code, response.content, response.headers


print("requests", requests.__version__)

at = {"p": "python", "c": "1.1.1/1.1.1/1.1.1"}
text = "ünïcode 🙂 & 100 % + more\r\n".encode()
# The library encodes parameters: %2F in coordinates, + for spaces.
status, body, _ = send("POST", "/api/v2/update", params=at, data=text)
assert (status, body) == (200, b"Updated %d bytes" % len(text)), (status, body)
status, body, headers = send("GET", "/api/v2/select", params=at)
assert (status, body) == (200, text), (status, body)
assert headers["Content-Type"].lower() == "text/plain; charset=utf-8", headers["Content-Type"]
status, body, _ = send("GET", "/api/v2/insert", params={**at, "s": " a b+c"})
assert status == 200, (status, body)
status, body, _ = send("GET", "/api/v2/select", params=at)
assert body == text + b" a b+c", body
status, body, _ = send("DELETE", "/api/v2/delete", params=at)
assert status == 200, (status, body)
# A generator is sent in chunks, without a length.
status, body, _ = send("POST", "/api/v2/update", params=at, data=iter([b"one ", b"two"]))
assert (status, body) == (200, b"Updated 7 bytes"), (status, body)
# The error of a request that can't work says which one would.
status, body, headers = send("POST", "/api/v2/update", params=at, files={"s": b"text"})
assert status in (400, 415) and b"form" in body, (status, body)
assert headers["Content-Type"] == "application/problem+json", headers["Content-Type"]
status, body, _ = send("POST", "/api/v2/update", params={"p": "python"}, data=b"text")
assert status == 400 and b'"parameter":"c"' in body, (status, body)
print("all good")
