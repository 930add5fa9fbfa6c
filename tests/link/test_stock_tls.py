"""The TLS files of the page of stock Flower: whom they let be the SuperLink, and whom not."""

from __future__ import annotations

import socket
import ssl
import stat
import threading
from pathlib import Path

import pytest
from cryptography import x509
from stock_kit import certify


def shake_hands(folder: Path, name: str, authority: Path) -> str:
    """Dial a server that shows the page's certificate; return the version of TLS.

    Raises:
        ssl.SSLError: if the server is not who was dialled.
    """
    shown = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    shown.load_cert_chain(folder / "server.pem", folder / "server.key")
    wanted = ssl.create_default_context(cafile=str(authority))
    wanted.verify_flags |= ssl.VERIFY_X509_STRICT  # as Python does from 3.13 on
    here, there = socket.socketpair()

    def serve() -> None:
        try:
            shown.wrap_socket(there, server_side=True).close()
        except OSError:
            there.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with wanted.wrap_socket(here, server_hostname=name) as stream:
            return str(stream.version())
    finally:
        here.close()
        thread.join(10)


@pytest.mark.parametrize(
    ("written", "good", "bad"),
    [
        ("DNS:hub.example.org", "hub.example.org", "hub.example.com"),
        ("IP:127.0.0.1", "127.0.0.1", "127.0.0.2"),
    ],
)
def test_a_superlink_is_known_by_its_name(
    tmp_path: Path, written: str, good: str, bad: str
) -> None:
    certify(tmp_path, written)
    assert shake_hands(tmp_path, good, tmp_path / "ca.pem") == "TLSv1.3"
    with pytest.raises(ssl.SSLCertVerificationError, match="match"):
        shake_hands(tmp_path, bad, tmp_path / "ca.pem")
    other = tmp_path / "other"
    other.mkdir()
    certify(other, written)
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(tmp_path, good, other / "ca.pem")


def test_what_the_files_may_do_and_who_can_read_them(tmp_path: Path) -> None:
    certify(tmp_path)
    for name in ("ca.key", "server.key"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) & 0o077 == 0
    authority, server = (
        x509.load_pem_x509_certificate((tmp_path / f"{name}.pem").read_bytes())
        for name in ("ca", "server")
    )
    server.verify_directly_issued_by(authority)
    for found, signs in ((authority, True), (server, False)):
        usage = found.extensions.get_extension_for_class(x509.KeyUsage).value
        basic = found.extensions.get_extension_for_class(x509.BasicConstraints)
        assert basic.critical and basic.value.ca is usage.key_cert_sign is signs
