"""The switch of TF32, on and off; what it does to numbers is for tests on a GPU."""

import pytest
from torch.backends import cudnn

from align_gen.precision import exact_float32


def test_tf32_is_off_inside_and_as_it_was_after() -> None:
    assert cudnn.allow_tf32  # torch's default, which is why there is something to do
    before = (cudnn.enabled, cudnn.benchmark, cudnn.deterministic)
    with exact_float32():
        assert not cudnn.allow_tf32
        assert (cudnn.enabled, cudnn.benchmark, cudnn.deterministic) == before
    assert cudnn.allow_tf32
    with pytest.raises(KeyError), exact_float32():
        raise KeyError
    assert cudnn.allow_tf32


def test_what_another_chose_stands() -> None:
    with cudnn.flags(enabled=True, benchmark=True, deterministic=True, allow_tf32=True):
        with exact_float32():
            assert cudnn.benchmark and cudnn.deterministic
        assert cudnn.allow_tf32
