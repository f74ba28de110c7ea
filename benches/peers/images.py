#!/usr/bin/env python3
"""Interleaved comparison of this engine with diffusers (PyTorch on the CPU) and stable-diffusion.cpp on one image model and the same
threads.

    images.py [-t 2] [--rounds 3] [--size 512x512] [--models DIR] [--peer-python PYTHON] [--name NAME]

The model has Stable Diffusion 1.5's shapes with random weights in 16 bits and is made once (a diffusers folder, one file in the original
layout, the same in floats of 8 bits, a tiny autoencoder: 5.4 GB; with stable-diffusion-cpp-python also a Q8_0 GGUF by its converter):
speed and memory need no trained weights. Each round runs every side in a process of its own, in turns; the order turns round by round. A phase is one text
encoding, one evaluation of the U-Net, one decoding by the autoencoder or by the tiny one, after one that is not counted. diffusers
computes in f32, which is its fastest on a CPU without 16-bit arithmetic. stable-diffusion.cpp runs in the first round only, and its
decoding is its process's first. Both peers run with their defaults. Our seconds are with all networks in memory; our peak memory is of one
picture with each network in memory while it is used, as `imagine` does it, the peers' of a process that holds all. The medians are
printed as a table and written with every single measurement to benches/record/DATE-NAME.json.

Needs torch, diffusers, transformers and safetensors in the Python that runs it, and stable-diffusion-cpp-python in PYTHON, or does
without that side.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

import compare

PHASES = ("prompt", "unet", "decode", "tiny_decode")
FOLDER, FILE, TINY, QUANTIZED = "random-sd15", "random-sd15.safetensors", "random-taesd.safetensors", "random-sd15-q8_0.gguf"
FLOATS8 = "random-sd15-f8_e4m3.safetensors"


def make_folder(folder: str) -> None:
    """Stable Diffusion 1.5 with random weights."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    print(f"making {folder}", file=sys.stderr)
    text = CLIPTextModel(CLIPTextConfig(
        vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
        max_position_embeddings=77, hidden_act="quick_gelu", projection_dim=768))
    unet = UNet2DConditionModel(
        sample_size=64, in_channels=4, out_channels=4, block_out_channels=(320, 640, 1280, 1280), layers_per_block=2,
        cross_attention_dim=768, attention_head_dim=8)
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512), down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2, latent_channels=4, sample_size=512)
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, set_alpha_to_one=False)
    part = folder + ".part"
    for name, model in (("text_encoder", text), ("unet", unet), ("vae", vae)):
        model.half().save_pretrained(os.path.join(part, name))
    scheduler.save_pretrained(os.path.join(part, "scheduler"))
    index = {
        "_class_name": StableDiffusionPipeline.__name__,
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    with open(os.path.join(part, "model_index.json"), "w", encoding="utf-8") as file:
        json.dump(index, file)
    os.rename(part, folder)


RESNET = (("norm1", "in_layers.0"), ("conv1", "in_layers.2"), ("time_emb_proj", "emb_layers.1"), ("norm2", "out_layers.0"), ("conv2", "out_layers.3"),
          ("conv_shortcut", "skip_connection"))


def unet_name(name: str) -> str:
    """A tensor of the U-Net as the original checkpoints name it; blocks are numbered through there."""
    first, *rest = name.split(".")
    if first in ("down_blocks", "up_blocks"):
        block, kind, at, *rest = int(rest[0]), rest[1], int(rest[2]), *rest[3:]
        if kind == "downsamplers":
            return ".".join(["input_blocks", str(3 * block + 3), "0", "op", *rest[1:]])
        if kind == "upsamplers":
            return ".".join(["output_blocks", str(3 * block + 2), "1" if block == 0 else "2", *rest])
        place = ["input_blocks", str(3 * block + at + 1)] if first == "down_blocks" else ["output_blocks", str(3 * block + at)]
        place.append("0" if kind == "resnets" else "1")
    elif first == "mid_block":
        place = ["middle_block", "1" if rest[0] == "attentions" else str(2 * int(rest[1]))]
        kind, rest = rest[0], rest[2:]
    else:
        whole = {"conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
                 "time_embedding": {"linear_1": "time_embed.0", "linear_2": "time_embed.2"}.get(rest[0])}[first]
        return f"{whole}.{rest[-1]}"
    if kind == "resnets":
        rest[0] = dict(RESNET)[rest[0]]
    return ".".join(place + rest)


def vae_name(name: str) -> str:
    """A tensor of the autoencoder as the original checkpoints name it."""
    for ours, theirs in (("mid_block.resnets.0", "mid.block_1"), ("mid_block.resnets.1", "mid.block_2"), ("mid_block.attentions.0", "mid.attn_1"),
                         ("group_norm", "norm"), ("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out"), ("conv_shortcut", "nin_shortcut"),
                         ("conv_norm_out", "norm_out"), ("down_blocks", "down"), ("resnets", "block"), ("downsamplers.0", "downsample"),
                         ("upsamplers.0", "upsample"), *((f"up_blocks.{i}", f"up.{3 - i}") for i in range(4))):
        name = name.replace(ours, theirs)
    return name


def make_file(folder: str, path: str) -> None:
    """The folder's model as one file in the original layout."""
    from safetensors.torch import load_file, save_file

    print(f"making {path}", file=sys.stderr)
    tensors = {}
    for name, tensor in load_file(os.path.join(folder, "unet", "diffusion_pytorch_model.safetensors")).items():
        tensors["model.diffusion_model." + unet_name(name)] = tensor
    for name, tensor in load_file(os.path.join(folder, "vae", "diffusion_pytorch_model.safetensors")).items():
        name = vae_name(name)
        # Its attention's matrices are kernels of 1 x 1 there.
        tensors["first_stage_model." + name] = tensor[:, :, None, None] if "attn_1" in name and tensor.ndim == 2 else tensor
    for name, tensor in load_file(os.path.join(folder, "text_encoder", "model.safetensors")).items():
        tensors["cond_stage_model.transformer.text_model." + name.removeprefix("text_model.")] = tensor
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path + ".part")
    os.rename(path + ".part", path)


def make_tiny(path: str) -> None:
    """A tiny autoencoder with random weights."""
    import torch
    from diffusers import AutoencoderTiny
    from safetensors.torch import save_file

    torch.manual_seed(1)
    save_file({name: tensor.half().contiguous() for name, tensor in AutoencoderTiny().state_dict().items()}, path + ".part")
    os.rename(path + ".part", path)


def make_floats8(file: str, path: str) -> None:
    """The file's weights as floats of 8 bits."""
    import torch
    from safetensors.torch import load_file, save_file

    save_file({name: tensor.to(torch.float8_e4m3fn) for name, tensor in load_file(file).items()}, path + ".part")
    os.rename(path + ".part", path)


def make_models(options: argparse.Namespace) -> None:
    """What is not there yet."""
    os.makedirs(options.models, exist_ok=True)
    at = lambda name: os.path.join(options.models, name)
    for name, make in ((FOLDER, make_folder), (FILE, lambda path: make_file(at(FOLDER), path)), (TINY, make_tiny),
                       (FLOATS8, lambda path: make_floats8(at(FILE), path))):
        if not os.path.exists(at(name)):
            make(at(name))
    if options.peer_python and not os.path.exists(at(QUANTIZED)):
        program = ("import sys, stable_diffusion_cpp.stable_diffusion_cpp as c; "
                   "sys.exit(not c.convert(sys.argv[1].encode(), b'', sys.argv[2].encode(), 8, b'', False))")  # 8 is GGML's number of Q8_0
        part = at("part-" + QUANTIZED)
        subprocess.run([options.peer_python, "-c", program, at(FILE), part], check=True, stdout=subprocess.DEVNULL)
        os.rename(part, at(QUANTIZED))


def run_process(command: list, environment: dict | None = None) -> tuple[dict, int]:
    """A program's JSON, and the most memory it had."""
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.DEVNULL, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = status
        out.seek(0)
        lines = out.read().splitlines()
    if not lines:
        sys.exit(f"{command}: ended with {status} and no answer")
    answer = json.loads(lines[-1])
    if "error" in answer:
        sys.exit(f"{command[0]}: {answer['error']}")
    return answer, usage.ru_maxrss * 1024


def ours(binaries: dict, options: argparse.Namespace, model: str) -> dict:
    """Speeds with all networks in memory, and the most memory that one picture takes where each is there while it is used."""
    width, height = options.size.split("x")
    at = lambda name: os.path.join(options.models, name)
    common = ["--json", "-m", at(model), "-t", str(options.threads), "-W", width, "-H", height, "--steps", "1"]
    whole, _ = run_process([binaries["bench"], *common, "-r", "1"])
    tiny, _ = run_process([binaries["bench"], *common, "-r", "1", "--taesd", at(TINY)])
    with tempfile.TemporaryDirectory() as scratch:
        command = [binaries["imagine"], *common, "--cfg-scale", "1", "-p", "a red circle", "-o", os.path.join(scratch, "x.png")]
        answer, peak = run_process(command)
    parts = {"prompt": whole["seconds"]["prompt"], "unet": whole["seconds"]["step"], "decode": whole["seconds"]["decode"],
             "tiny_decode": tiny["seconds"]["decode"]}
    return {**{name: part["median"] for name, part in parts.items()},
            **{name + "_bound_fraction": part["bound_fraction"] for name, part in parts.items()},
            "peak_bytes": peak, "planned_bytes": answer["memory"]["planned_bytes"]}


def diffusers(options: argparse.Namespace) -> dict:
    environment = dict(os.environ, OMP_NUM_THREADS=str(options.threads))
    answer, peak = run_process([sys.executable, __file__, "--inside", "diffusers", *inner(options)], environment)
    return {**answer, "peak_bytes": peak}


def stable_diffusion_cpp(options: argparse.Namespace, model: str) -> dict:
    answer, peak = run_process([options.peer_python, __file__, "--inside", model, *inner(options)])
    tiny, _ = run_process([options.peer_python, __file__, "--inside", model, "--tiny", *inner(options)])
    return {**answer, "tiny_decode": tiny["decode"], "peak_bytes": peak}


def inner(options: argparse.Namespace) -> list:
    return ["--models", options.models, "-t", str(options.threads), "--size", options.size]


def as_diffusers(options: argparse.Namespace) -> None:
    """One of each phase, in this process."""
    import torch
    from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
    from safetensors.torch import load_file
    from transformers import CLIPTextModel

    torch.set_num_threads(options.threads)
    width, height = (int(side) // 8 for side in options.size.split("x"))
    took = {}

    def timed(name, work):
        begun = time.perf_counter()
        result = work()
        took[name] = time.perf_counter() - begun
        return result

    with torch.inference_mode():
        folder = os.path.join(options.models, FOLDER)
        load = lambda kind, part: kind.from_pretrained(os.path.join(folder, part), torch_dtype=torch.float32).eval()
        text, unet, vae = load(CLIPTextModel, "text_encoder"), load(UNet2DConditionModel, "unet"), load(AutoencoderKL, "vae")
        tiny = AutoencoderTiny().eval()
        tiny.load_state_dict({name: tensor.float() for name, tensor in load_file(os.path.join(options.models, TINY)).items()})
        latents = torch.randn(1, 4, height, width)
        tokens = torch.randint(0, 49000, (1, 77))
        # The first evaluation of each also lays weights out.
        for _ in range(2):
            context = timed("prompt", lambda: text(tokens).last_hidden_state)
            timed("unet", lambda: unet(latents, 500, context).sample)
            timed("decode", lambda: vae.decode(latents).sample)
            timed("tiny_decode", lambda: tiny.decode(latents).sample)
    print(json.dumps(took))


def as_stable_diffusion_cpp(options: argparse.Namespace) -> None:
    """Two steps and a decoding, in this process; the second step and what comes after it are timed."""
    from stable_diffusion_cpp import StableDiffusion

    width, height = (int(side) for side in options.size.split("x"))
    at = lambda name: os.path.join(options.models, name)
    model = StableDiffusion(model_path=at(options.inside), taesd_path=at(TINY) if options.tiny else "", n_threads=options.threads, verbose=False)
    steps = []
    model.generate_image("a red circle", width=width, height=height, cfg_scale=1.0, sample_method="euler", sample_steps=2, seed=1,
                         progress_callback=lambda step, of, _: steps.append(time.perf_counter()) if of == 2 else None)
    end = time.perf_counter()
    print(json.dumps({"unet": steps[-1] - steps[-2], "decode": end - steps[-1]}))


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("-t", "--threads", type=int, default=2)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--size", default="512x512")
    cache = os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache"))
    arguments.add_argument("--models", default=os.path.join(cache, "tenure"), help="where the random models are, or are made")
    arguments.add_argument("--peer-python", help="a Python with stable-diffusion-cpp-python")
    arguments.add_argument("--name", default="images")
    arguments.add_argument("--binaries", help="a folder with our examples, instead of what is built now")
    arguments.add_argument("--folder", default=os.path.join(compare.ROOT, "benches", "record"))
    arguments.add_argument("--inside", help=argparse.SUPPRESS)
    arguments.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.inside:
        return as_diffusers(options) if options.inside == "diffusers" else as_stable_diffusion_cpp(options)
    make_models(options)
    given = lambda name: os.path.join(options.binaries, name) if options.binaries else None
    binaries = {name: compare.built(name, given(name)) for name in ("bench", "imagine")}
    settings = {"threads": options.threads, "rounds": options.rounds, "size": options.size, "model": FOLDER}
    record = compare.begin_record(settings)
    sides = {"tenure f16": lambda: ours(binaries, options, FOLDER), "diffusers f32": lambda: diffusers(options),
             "tenure f8_e4m3": lambda: ours(binaries, options, FLOATS8)}
    if os.path.exists(os.path.join(options.models, QUANTIZED)):
        sides["tenure q8_0"] = lambda: ours(binaries, options, QUANTIZED)
    runs = {name: [] for name in sides}
    show = lambda name, run: print(name, {key: round(value, 3) for key, value in run.items()}, file=sys.stderr)
    for i in range(options.rounds):
        for name in list(sides)[:: 1 if i % 2 == 0 else -1]:
            runs[name].append(sides[name]())
            show(name, runs[name][-1])
        if i == 0 and options.peer_python:
            for name, model in (("stable-diffusion.cpp f16", FILE), ("stable-diffusion.cpp q8_0", QUANTIZED)):
                runs[name] = [stable_diffusion_cpp(options, model)]
                show(name, runs[name][0])
    medians = {name: {key: statistics.median(run[key] for run in of) for key in of[0]} for name, of in runs.items()}
    print(f"{'seconds':12}" + "".join(f"{name:>27}" for name in medians))
    for phase in PHASES:
        print(f"{phase:12}" + "".join(f"{of[phase]:27.3f}" if phase in of else f"{'-':>27}" for of in medians.values()))
        theirs = medians["diffusers f32"][phase]
        ratios = {name: theirs / of[phase] for name, of in medians.items() if phase in of}
        fractions = {name: of[phase + "_bound_fraction"] for name, of in medians.items() if phase + "_bound_fraction" in of}
        record["results"].append({"phase": phase, "seconds": {name: of[phase] for name, of in medians.items() if phase in of},
                                  "times_as_fast_as_diffusers": ratios, "bound_fraction": fractions})
    print(f"{'peak MB':12}" + "".join(f"{of['peak_bytes'] / 1e6:27.0f}" for of in medians.values()))
    record["runs"] = runs
    record["results"].append({"peak_bytes": {name: of["peak_bytes"] for name, of in medians.items()}})
    compare.write_record(record, options.folder, options.name)


if __name__ == "__main__":
    main()
