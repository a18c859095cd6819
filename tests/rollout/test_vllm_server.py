"""The server engine against a server that misbehaves in every way, and against a real `vllm serve` on a CPU."""

import contextlib
import importlib.util
import json
import os
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from rollout_models import build_lora, build_model, write_tokenizer

from negpo.errors import ConfigError
from negpo.rollout import EngineError, Sampling, StaleWeightsError, make_engine
from negpo.rollout.base import request_seed

needs_vllm = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")


class FakeServer:
    """Answers completions with tokens that depend on the seed; `misbehave` may take over a request first."""

    def __init__(self):
        self.misbehave = lambda handler, path, body: False
        self.completions, self.posts = [], []
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.answer({"data": [{"id": "fake", "max_model_len": 64}]})

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                fake.posts.append(self.path)
                if self.path == "/v1/completions":
                    fake.completions.append(body)
                if not fake.misbehave(self, self.path, body):
                    self.answer(fake.honest(self.path, body))

            def answer(self, content, code=200):
                raw = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(code)
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()
        self.address = f"http://127.0.0.1:{self.http.server_port}"

    @staticmethod
    def honest(path, body):
        if path == "/collective_rpc":
            return {"results": ["float32"]}
        if path != "/v1/completions":
            return {"success": True}
        tokens = [body.get("seed", 0) % 50, 7]
        scores = [None] + [{str(t): {"logprob": -2.0}} for t in body["prompt"][1:]]
        logprobs = {"token_logprobs": [-2.0, -1.0]}
        choice = {"token_ids": tokens, "logprobs": logprobs, "finish_reason": "stop", "prompt_logprobs": scores}
        return {"choices": [choice]}


@pytest.fixture
def server():
    fake = FakeServer()
    yield fake
    fake.http.shutdown()
    fake.http.server_close()


def connect(server, **options):
    return make_engine("vllm-server", server.address, **{"backoff": 0.01, "timeout": 5.0, "retries": 2} | options)


PROMPTS = [[1, 2, 3], [4, 5], [6]]


def test_every_sample_is_one_request_with_its_own_seed(server):
    rows = connect(server).generate(PROMPTS, Sampling(n=2, seed=9, max_new_tokens=4))
    assert [[s.token_ids for s in row] for row in rows] == [
        [[request_seed(9, p, k) % 50, 7] for k in range(2)] for p in range(3)
    ]
    assert {s.finish_reason for row in rows for s in row} == {"stop"}
    assert rows[0][0].logprobs == [-2.0, -1.0]


def break_connection(handler):
    handler.close_connection = True
    handler.connection.shutdown(socket.SHUT_RDWR)


def truncate(handler):
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [')
    handler.close_connection = True


NAN = b'{"choices": [{"token_ids": [1], "logprobs": {"token_logprobs": [NaN]}, "finish_reason": "stop"}]}'
SHORT = b'{"choices": [{"token_ids": [1, 2], "logprobs": {"token_logprobs": [-1]}, "finish_reason": "stop"}]}'
ABORTED = b'{"choices": [{"token_ids": [1], "logprobs": {"token_logprobs": [-1]}, "finish_reason": "abort"}]}'
FAULTS = {
    "500": lambda handler: handler.answer({"error": "engine died"}, 500),
    "429": lambda handler: handler.answer({"error": "busy"}, 429),
    "not json": lambda handler: handler.answer(b"\x00<html>"),
    "another shape": lambda handler: handler.answer({"choices": []}),
    "a list": lambda handler: handler.answer([1, 2]),
    "empty": lambda handler: handler.answer(b""),
    "nan log-prob": lambda handler: handler.answer(NAN),
    "a log-prob too few": lambda handler: handler.answer(SHORT),
    "aborted": lambda handler: handler.answer(ABORTED),
    "broken connection": break_connection,
    "half an answer": truncate,
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_a_request_that_fails_twice_is_tried_again(server, fault):
    engine = connect(server)
    expected = engine.generate(PROMPTS, Sampling(n=2, max_new_tokens=4))
    attempts = {}

    def fail_twice(handler, path, body):
        attempts[body["seed"]] = attempts.get(body["seed"], 0) + 1
        if attempts[body["seed"]] > 2:
            return False
        fault(handler)
        return True

    server.misbehave = fail_twice
    assert engine.generate(PROMPTS, Sampling(n=2, max_new_tokens=4)) == expected


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_a_request_that_keeps_failing_is_named_and_the_others_are_kept(server, fault):
    engine, seen = connect(server, max_rows=1), []
    bad = request_seed(0, 1, 1)

    def fail_one(handler, path, body):
        if body.get("seed") == bad:
            fault(handler)
        return body.get("seed") == bad

    server.misbehave = fail_one
    with pytest.raises(EngineError, match=r"no usable answer to prompt 1 sample 1 .*in 3 attempts") as failed:
        engine.generate(PROMPTS, Sampling(n=2, max_new_tokens=4), on_sample=seen.append)
    assert [(s.prompt, s.index) for s in seen] == [(0, 0), (0, 1), (1, 0)]
    assert failed.value.finished == seen


@pytest.mark.parametrize("drip", [False, True], ids=["silent", "dripping"])
def test_a_server_that_hangs_costs_a_bounded_time(server, drip):
    engine = connect(server, timeout=0.3, retries=1)
    release = threading.Event()

    def hang(handler, path, body):
        if drip:
            handler.send_response(200)
            handler.end_headers()
        while not release.wait(0.1):
            if drip:
                handler.wfile.write(b" ")
        return True

    server.misbehave = hang
    started = time.perf_counter()
    with pytest.raises(EngineError, match=r"in 2 attempts of at most 0.3 s"):
        engine.generate(PROMPTS, Sampling(n=4, max_new_tokens=4))
    release.set()
    assert time.perf_counter() - started < 5


def test_a_refusal_is_not_repeated_and_shows_the_servers_words(server):
    engine = connect(server)
    server.misbehave = lambda handler, path, body: handler.answer({"error": "max_tokens too large"}, 400) or True
    asked = len(server.completions)
    with pytest.raises(EngineError, match=r"refused prompt 0 sample 0.*max_tokens too large"):
        engine.generate(PROMPTS[:1], Sampling(max_new_tokens=4))
    assert len(server.completions) == asked + 1


def test_a_server_that_is_not_there_is_named():
    with pytest.raises(EngineError, match=r"http://127.0.0.1:9/v1/models gave no usable answer"):
        make_engine("vllm-server", "http://127.0.0.1:9", retries=1, backoff=0.01)
    with pytest.raises(ConfigError, match="needs an address"):
        make_engine("vllm-server", "localhost:8000")


def test_an_interrupt_from_the_callback_ends_the_call_at_once(server):
    def interrupt(sample):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        connect(server, max_rows=1).generate(PROMPTS, Sampling(n=8, max_new_tokens=4), on_sample=interrupt)


def test_a_server_that_reports_untempered_logprobs_is_refused(server):
    with pytest.raises(ConfigError, match="--logprobs-mode processed_logprobs"):
        connect(server).generate(PROMPTS, Sampling(temperature=0.7, max_new_tokens=4))
    assert connect(server).generate(PROMPTS, Sampling(temperature=0.7, max_new_tokens=4, logprobs=False))


def test_a_server_that_takes_weights_but_does_not_use_them_is_refused(server, tmp_path):
    """The fake server scores every token with -2 whatever it is handed."""
    engine = connect(server, folder=str(tmp_path))
    with pytest.raises(StaleWeightsError, match="does not hold the trainer's weights"):
        engine.sync(build_model())
    assert "/pause?mode=wait" in server.posts
    assert server.posts.index("/collective_rpc") < server.posts.index("/resume")
    (handed_over,) = tmp_path.iterdir()
    assert (handed_over / "model-00000.safetensors").is_file()
    engine.close()
    assert list(tmp_path.iterdir()) == []


def test_generation_resumes_even_when_the_server_takes_no_weights(server, tmp_path):
    engine = connect(server, folder=str(tmp_path), retries=0)

    def refuse(handler, path, body):
        if path == "/collective_rpc":
            handler.answer({"error": "no such method"}, 404)
        return path == "/collective_rpc"

    server.misbehave = refuse
    with pytest.raises(EngineError, match="VLLM_SERVER_DEV_MODE=1"):
        engine.sync(build_model())
    assert server.posts[-1] == "/resume"


def test_nccl_without_a_gpu_is_refused(server):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ConfigError, match="transfer='nccl' needs a GPU"):
        connect(server, transfer="nccl")


@pytest.fixture(scope="module")
def real_server(tmp_path_factory):
    """A `vllm serve` of the tied tiny model on this machine's CPU."""
    with serving(tmp_path_factory.mktemp("served")) as engine:
        yield engine


@pytest.fixture(scope="module")
def adapter_server(tmp_path_factory):
    """The same, started for adapters."""
    flags = ["--enable-lora", "--max-lora-rank", "8", "--max-cpu-loras", "2"]
    with serving(tmp_path_factory.mktemp("adapters"), flags, adapter_rank=8) as engine:
        yield engine


@contextlib.contextmanager
def serving(folder, flags=(), **options):
    build_model().save_pretrained(folder)
    write_tokenizer(folder)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = {
        "VLLM_SERVER_DEV_MODE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "TORCH_COMPILE_DISABLE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
    }
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), "--port", str(port)]
    command += ["--dtype", "float32", "--enforce-eager", "--max-model-len", "128", "--no-enable-chunked-prefill"]
    command += ["--logprobs-mode", "processed_logprobs", "--host", "127.0.0.1"]
    command += ["--worker-extension-cls", "negpo.rollout.vllm_worker.SyncExtension", *flags]
    with open(folder / "server.log", "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | settings)
    address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 240
    try:
        while True:
            try:
                engine = make_engine("vllm-server", address, retries=0, timeout=60.0, **options)
                break
            except EngineError:
                assert process.poll() is None, (folder / "server.log").read_text()[-3000:]
                assert time.monotonic() < deadline, "the server did not start"
                time.sleep(1)
        yield engine
        engine.close()
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()


@needs_vllm
@pytest.mark.vllm
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_a_real_server_follows_the_trainer_and_agrees_with_transformers(real_server, lora, prompts):
    trainer = build_lora(build_model(seed=1)) if lora else build_model(seed=1)
    assert real_server.dtype == torch.float32
    for seed in range(2):
        torch.manual_seed(seed)
        for parameter in trainer.parameters():
            parameter.data.add_(0.01 * torch.randn_like(parameter))
        assert real_server.sync(trainer).max_gap < 1e-4
        assert real_server.stale_layers(trainer) == []
    greedy = Sampling(greedy=True, max_new_tokens=12, stop_token_ids=(2,))
    ours, theirs = (e.generate(prompts, greedy) for e in (real_server, make_engine("transformers", trainer)))
    for (a,), (b,) in zip(ours, theirs, strict=True):
        assert a.token_ids == b.token_ids
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)


@needs_vllm
@pytest.mark.vllm
def test_a_real_server_draws_the_same_sample_alone_and_among_others(real_server, prompts):
    sampling = Sampling(n=2, max_new_tokens=8, seed=4, temperature=0.8, stop_token_ids=())
    everything = real_server.generate(prompts, sampling)
    ((alone,),) = (row for row in real_server.generate(prompts, sampling, wanted=[(5, 1)]) if row)
    assert alone.token_ids == everything[5][1].token_ids


@needs_vllm
@pytest.mark.vllm
def test_vllms_own_reload_leaves_a_tied_head_stale_and_is_refused(real_server, monkeypatch):
    if torch.cuda.is_available():
        pytest.skip("only CPU builds pack their layers")
    trainer, rpc = build_model(seed=3), real_server._rpc

    def without_extension(method, *args, **kwargs):
        if method == "negpo_load":
            raise EngineError("pretended: no such method")
        return rpc(method, *args, **kwargs)

    monkeypatch.setattr(real_server, "_rpc", without_extension)
    with pytest.raises(StaleWeightsError) as refused:
        real_server.sync(trainer)
    assert refused.value.layers == ["lm_head.weight"]


@needs_vllm
@pytest.mark.vllm
def test_a_real_server_takes_adapters_alone_and_lets_go_of_the_old_ones(adapter_server, prompts):
    trainer = build_lora(build_model())
    for seed in range(4):
        torch.manual_seed(seed)
        for name, parameter in trainer.named_parameters():
            if "lora" in name:
                parameter.data.add_(0.01 * torch.randn_like(parameter))
        report = adapter_server.sync(trainer)
        assert report.max_gap < 1e-4
        assert report.bytes_sent < 60_000  # the whole model has 800,000
        assert adapter_server.stale_layers(trainer) == []
    names = adapter_server._client.call("/v1/models", parse=lambda a: [m["id"] for m in a["data"]], label="models")
    assert len(names) == 2, "the base and one adapter"
    greedy = Sampling(greedy=True, max_new_tokens=12, stop_token_ids=(2,))
    ours, theirs = (e.generate(prompts, greedy) for e in (adapter_server, make_engine("transformers", trainer)))
    for (a,), (b,) in zip(ours, theirs, strict=True):
        assert a.token_ids == b.token_ids
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)


@needs_vllm
@pytest.mark.vllm
def test_a_server_with_another_base_is_refused_by_layer(adapter_server, monkeypatch):
    trainer = build_lora(build_model())
    trainer.base_model.model.model.layers[0].mlp.up_proj.weight.data.mul_(1.01)
    monkeypatch.setattr(adapter_server, "_base_is_equal", False)
    with pytest.raises(StaleWeightsError) as refused:
        adapter_server.sync(trainer)
    assert refused.value.layers == ["model.layers.0.mlp.up_proj.weight"]


def test_a_server_that_takes_no_adapters_is_named_with_its_flags(server, tmp_path):
    server.misbehave = lambda handler, path, body: (
        handler.answer({"error": "no such route"}, 404) or True if "lora" in path else False
    )
    engine = connect(server, folder=str(tmp_path), adapter_rank=8)
    with pytest.raises(EngineError, match="--enable-lora --max-lora-rank 8"):
        engine.sync(build_lora(build_model()))
