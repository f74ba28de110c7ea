"""A thin layer over llama-cpp-python's low-level binding: what the scripts beside it share."""

import ctypes
import os
import sys
import time

import llama_cpp as ll
import numpy as np

KV_TYPES = {"f32": ll.GGML_TYPE_F32, "f16": ll.GGML_TYPE_F16, "q8_0": ll.GGML_TYPE_Q8_0}
FLASH = {
    "auto": ll.LLAMA_FLASH_ATTN_TYPE_AUTO,
    "on": ll.LLAMA_FLASH_ATTN_TYPE_ENABLED,
    "off": ll.LLAMA_FLASH_ATTN_TYPE_DISABLED,
}


@ll.llama_log_callback
def _errors_only(level, text, _data):
    if level == 4:  # GGML_LOG_LEVEL_ERROR
        sys.stderr.write(text.decode("utf-8", "replace"))


def quiet() -> None:
    """Silence everything but errors."""
    ll.llama_log_set(_errors_only, ctypes.c_void_p(0))


class Model:
    """One loaded model; `with` frees it."""

    def __init__(self, path: str, repack: bool = True):
        quiet()
        ll.llama_backend_init()
        params = ll.llama_model_default_params()
        params.n_gpu_layers = 0
        params.use_extra_bufts = repack
        if not os.path.isfile(path):
            raise FileNotFoundError(path)
        self.path = path
        self.model = ll.llama_model_load_from_file(path.encode(), params)
        if not self.model:
            raise RuntimeError(f"llama.cpp refuses {path}")
        self.vocab = ll.llama_model_get_vocab(self.model)
        self.n_vocab = ll.llama_vocab_n_tokens(self.vocab)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        ll.llama_model_free(self.model)

    def description(self) -> str:
        buffer = ctypes.create_string_buffer(256)
        ll.llama_model_desc(self.model, buffer, len(buffer))
        return buffer.value.decode()

    def tokenize(self, text: str, special: bool = True) -> list[int]:
        raw = text.encode()
        out = (ll.llama_token * (len(raw) + 16))()
        count = ll.llama_tokenize(self.vocab, raw, len(raw), out, len(out), special, True)
        if count < 0:
            raise RuntimeError(f"the text needs {-count} tokens")
        return list(out[:count])

    def piece(self, token: int) -> bytes:
        buffer = ctypes.create_string_buffer(512)
        count = ll.llama_token_to_piece(self.vocab, token, buffer, len(buffer), 0, True)
        return buffer.raw[:max(count, 0)]

    def first_token(self, rng: np.random.Generator) -> int:
        """What llama-bench begins with: the BOS token where the file asks for it, else a random one."""
        if ll.llama_vocab_get_add_bos(self.vocab):
            return ll.llama_vocab_bos(self.vocab)
        return int(rng.integers(self.n_vocab))


class Context:
    """One context with its KV cache; `with` frees it."""

    def __init__(self, model: Model, n_ctx: int, threads: int, kv="f16", flash="auto", sequences=1, n_batch=2048, n_ubatch=512):
        params = ll.llama_context_default_params()
        params.n_ctx = n_ctx
        params.n_batch = n_batch
        params.n_ubatch = n_ubatch
        params.n_seq_max = sequences
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type = FLASH[flash]
        params.type_k = params.type_v = KV_TYPES[kv]
        params.no_perf = True
        self.model = model
        self.ctx = ll.llama_init_from_model(model.model, params)
        if not self.ctx:
            raise RuntimeError(f"llama.cpp makes no context of {n_ctx} tokens, kv {kv}, flash attention {flash}")
        self._batch = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._batch is not None:
            ll.llama_batch_free(self._batch)
        ll.llama_free(self.ctx)

    def clear(self) -> None:
        ll.llama_memory_clear(ll.llama_get_memory(self.ctx), False)

    def synchronize(self) -> None:
        ll.llama_synchronize(self.ctx)

    def run(self, tokens) -> None:
        """Append tokens to sequence 0 in batches; logits of the last one are kept."""
        step = ll.llama_n_batch(self.ctx)
        for begin in range(0, len(tokens), step):
            part = tokens[begin:begin + step]
            array = (ll.llama_token * len(part))(*part)
            self._check(ll.llama_decode(self.ctx, ll.llama_batch_get_one(array, len(part))))

    def run_rows(self, rows) -> None:
        """One decode of (token, position, sequence, wants_logits) rows."""
        rows = list(rows)
        if self._batch is None:
            self._batch = ll.llama_batch_init(ll.llama_n_batch(self.ctx), 0, 1)
        batch = self._batch
        batch.n_tokens = len(rows)
        for i, (token, position, sequence, wants_logits) in enumerate(rows):
            batch.token[i] = token
            batch.pos[i] = position
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = sequence
            batch.logits[i] = wants_logits
        self._check(ll.llama_decode(self.ctx, batch))

    def logits(self, row: int = -1) -> np.ndarray:
        pointer = ll.llama_get_logits_ith(self.ctx, row)
        return np.ctypeslib.as_array(pointer, shape=(self.model.n_vocab,)).copy()

    @staticmethod
    def _check(status: int) -> None:
        if status != 0:
            raise RuntimeError(f"llama_decode returned {status}")


def measure_prefill(model: Model, count: int, depth: int, repetitions: int, threads: int, flash: str) -> list[float]:
    """Prompt tokens per second as llama-bench's pp test defines them: one warm-up, then `repetitions` runs."""
    rng = np.random.default_rng(1)
    with Context(model, depth + count, threads, flash=flash) as context:
        def once() -> float:
            context.clear()
            if depth:
                context.run(rng.integers(model.n_vocab, size=depth).tolist())
                context.synchronize()
            tokens = rng.integers(model.n_vocab, size=count).tolist()
            tokens[0] = model.first_token(rng)
            begin = time.perf_counter()
            context.run(tokens)
            context.synchronize()
            return count / (time.perf_counter() - begin)

        once()
        return [once() for _ in range(repetitions)]


def measure_decode(model: Model, count: int, depth: int, sequences: int, repetitions: int, threads: int, flash: str) -> list[float]:
    """Generated tokens per second as llama-bench's tg test defines them; over all sequences together where there are several."""
    rng = np.random.default_rng(2)
    with Context(model, sequences * (depth + count), threads, flash=flash, sequences=sequences) as context:
        def fill() -> None:
            context.clear()
            for sequence in range(sequences):
                for begin in range(0, depth, 512):
                    size = min(512, depth - begin)
                    tokens = rng.integers(model.n_vocab, size=size).tolist()
                    context.run_rows((token, begin + i, sequence, i + 1 == size) for i, token in enumerate(tokens))
            context.synchronize()

        def once(steps: int) -> float:
            fill()
            draws = rng.integers(model.n_vocab, size=(steps, sequences)).tolist()
            draws[0][0] = model.first_token(rng)
            begin = time.perf_counter()
            for step, row in enumerate(draws):
                if sequences == 1:
                    context.run(row)
                else:
                    context.run_rows((token, depth + step, sequence, True) for sequence, token in enumerate(row))
                context.synchronize()
            return steps * sequences / (time.perf_counter() - begin)

        once(1)
        return [once(count) for _ in range(repetitions)]
