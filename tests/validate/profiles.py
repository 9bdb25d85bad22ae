"""Small profiles as Kineto writes them, made up for tests."""

import gzip
import json

COMPUTE, SECOND, MESSAGES = 7, 23, 27
HOST, BACKWARD = 100, 200


class Profile:
    """Events of a profile; times in microseconds."""

    def __init__(self):
        self.events = []
        self.n_calls = 0

    def range(self, name, start, end, thread=HOST):
        """A range that the program names."""
        self.events.append(
            {"ph": "X", "cat": "user_annotation", "name": name, "pid": 1, "tid": thread, "ts": start,
             "dur": end - start}
        )  # fmt: skip
        return self

    def kernel(self, name, start, end, *, stream=COMPUTE, launched=None, thread=HOST, grid=(1, 1, 1), device=0):
        """A kernel, and the call that launched it at ``launched`` (None: the profile has lost it)."""
        self.n_calls += 1
        if launched is not None:
            self.events.append(
                {"ph": "X", "cat": "cuda_runtime", "name": "cudaLaunchKernel", "pid": 1, "tid": thread, "ts": launched,
                 "dur": 1, "args": {"correlation": self.n_calls}}
            )  # fmt: skip
        args = {"device": device, "stream": stream, "correlation": self.n_calls, "grid": list(grid)}
        self.events.append(
            {"ph": "X", "cat": "kernel", "name": name, "pid": device, "tid": stream, "ts": start, "dur": end - start,
             "args": args}
        )  # fmt: skip
        return self

    def write(self, path):
        """The file, compressed if its name ends in gz; the events as they come."""
        content = json.dumps({"schemaVersion": 1, "traceEvents": self.events}).encode()
        path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
        return path


def chunk_pair():
    """One layer of a chunk pair in 100 us: messages beside compute but for 10 us."""
    found = Profile()
    dispatch, combine = "void ep::internode::dispatch<8>()", "void ep::internode::combine<8>()"
    times = {
        "combine(B)": (dispatch, MESSAGES, 0, 20), "attn(F)": ("flash_fwd", COMPUTE, 0, 10),
        "mlp(B)": ("m_grouped_gemm", COMPUTE, 20, 30), "dispatch(F)": (dispatch, MESSAGES, 20, 40),
        "dispatch(B)": (combine, MESSAGES, 40, 60), "mlp(W)": ("wgrad_gemm", COMPUTE, 30, 45),
        "mlp(F)": ("m_grouped_gemm", COMPUTE, 45, 60), "combine(F)": (combine, MESSAGES, 60, 80),
        "attn(B)": ("flash_bwd", COMPUTE, 60, 90), "attn(W)": ("wgrad_gemm", COMPUTE, 90, 100),
    }  # fmt: skip
    for i, (name, (kernel, stream, start, end)) in enumerate(times.items()):
        found.range(name, -50 + 2 * i, -49 + 2 * i)
        found.kernel(kernel, start, end, stream=stream, launched=-50 + 2 * i)
    return found
