"""The server that tests read from does what real ones do."""

import urllib.error
import urllib.request

import fsspec
import pytest


def fetch(url, **headers):
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=20) as answer:
        return answer.status, answer.headers, answer.read()


def test_http_lists_and_gives_ranges(web):
    (web.folder / "a.bin").write_bytes(bytes(range(100)))
    status, headers, content = fetch(f"{web.url}/a.bin", Range="bytes=10-19")
    assert (status, content) == (206, bytes(range(10, 20)))
    assert headers["Content-Range"] == "bytes 10-19/100"
    assert fetch(f"{web.url}/a.bin", Range="bytes=-3")[2] == bytes(range(97, 100))
    assert fetch(f"{web.url}/a.bin")[2] == bytes(range(100))
    assert fsspec.filesystem("http").ls(web.url, detail=False) == [f"{web.url}/a.bin"]
    assert ("GET", "/a.bin", "bytes=10-19") in web.requests


def test_http_fails_as_it_is_told(web):
    (web.folder / "a.bin").write_bytes(bytes(100))
    web.fault = lambda method, path: 503
    with pytest.raises(urllib.error.HTTPError, match="503"):
        fetch(f"{web.url}/a.bin")
    web.fault = lambda method, path: "drop"
    with pytest.raises(Exception, match="IncompleteRead"):
        fetch(f"{web.url}/a.bin")
    web.fault = lambda method, path: None
    web.query = "token=x"
    with pytest.raises(urllib.error.HTTPError, match="403"):
        fetch(f"{web.url}/a.bin")
    assert fetch(f"{web.url}/a.bin?token=x")[0] == 200
