import pytest

from ste_ops.functional.clip import fold as clip_fold


@pytest.fixture(params=["host", "device"])
def decided(request, monkeypatch):
    """Where a folded coefficient is known: on the CPU to the host, elsewhere to the device alone."""
    if request.param == "device":
        monkeypatch.setattr(clip_fold, "_known_to_host", lambda norm: False)
    return request.param
