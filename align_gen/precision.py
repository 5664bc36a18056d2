"""float32 that is float32."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def exact_float32() -> Iterator[None]:
    """Inside, convolutions of float32 run in float32 on a GPU; also a decorator.

    By default cuDNN rounds what they multiply to TF32, ten bits of mantissa. Trajectories that are replayed in another
    batch then differ by 1e-3 in their log-probabilities, a quarter of what PRDP lets a policy move.
    """
    from torch.backends import cudnn

    kept = {"enabled": cudnn.enabled, "benchmark": cudnn.benchmark, "deterministic": cudnn.deterministic}
    with cudnn.flags(**kept, allow_tf32=False):
        yield
