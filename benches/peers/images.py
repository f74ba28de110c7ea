#!/usr/bin/env python3
"""Interleaved comparison of this engine with diffusers (PyTorch on the CPU) on one image model and the same threads.

    images.py [-t 2] [--rounds 3] [--size 512x512] [--model FOLDER] [--name NAME]

Without a model, one of Stable Diffusion 1.5's shapes with random weights in 16 bits is made once, in the user's cache folder
(2.1 GB); speed and memory need no trained weights. Each round runs our `imagine` example and diffusers in a process of its own,
in turns; the order turns round by round. A phase is one text encoding, one evaluation of the U-Net, one decoding. diffusers
computes in f32, which is its fastest on a CPU without 16-bit arithmetic. The medians are printed as a table and written to benches/record/DATE-NAME.json.

Needs torch, diffusers, transformers and safetensors in the Python that runs it.
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

PHASES = ("prompt", "unet", "decode")


def make_model(folder: str) -> None:
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


def run_process(command: list, environment: dict | None = None) -> tuple[dict, int]:
    """A program's JSON, and the most memory it had."""
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.DEVNULL, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = status
        out.seek(0)
        answer = json.loads(out.read().splitlines()[-1])
    if "error" in answer:
        sys.exit(f"{command[0]}: {answer['error']}")
    return answer, usage.ru_maxrss * 1024


def ours(binary: str, options: argparse.Namespace, steps: int) -> dict:
    width, height = options.size.split("x")
    with tempfile.TemporaryDirectory() as scratch:
        command = [binary, "--json", "-m", options.model, "-t", str(options.threads), "-W", width, "-H", height, "--steps", str(steps),
                   "--cfg-scale", "1", "--sampler", "euler", "--seed", "1", "-p", "a red circle", "-o", os.path.join(scratch, "x.png")]
        answer, peak = run_process(command)
    timings = answer["timings"]
    return {"prompt": timings["prompt_ms"] / 1e3, "unet": timings["denoise_ms"] / 1e3 / steps, "decode": timings["decode_ms"] / 1e3,
            "peak_bytes": peak, "planned_bytes": answer["memory"]["planned_bytes"]}


def diffusers(options: argparse.Namespace) -> dict:
    environment = dict(os.environ, OMP_NUM_THREADS=str(options.threads))
    command = [sys.executable, __file__, "--diffusers", "--model", options.model, "-t", str(options.threads), "--size", options.size]
    answer, peak = run_process(command, environment)
    return {**answer, "peak_bytes": peak}


def as_diffusers(options: argparse.Namespace) -> None:
    """One of each phase, in this process."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
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
        load = lambda kind, part: kind.from_pretrained(os.path.join(options.model, part), torch_dtype=torch.float32).eval()
        text, unet, vae = load(CLIPTextModel, "text_encoder"), load(UNet2DConditionModel, "unet"), load(AutoencoderKL, "vae")
        latents = torch.randn(1, 4, height, width)
        tokens = torch.randint(0, 49000, (1, 77))
        for _ in range(2):
            context = timed("prompt", lambda: text(tokens).last_hidden_state)
        # The first evaluation also lays weights out; ours does that when it loads.
        unet(latents[..., :8, :8], 500, context)
        timed("unet", lambda: unet(latents, 500, context).sample)
        timed("decode", lambda: vae.decode(latents).sample)
    print(json.dumps(took))


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("-t", "--threads", type=int, default=2)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--size", default="512x512")
    arguments.add_argument("--model")
    arguments.add_argument("--name", default="images")
    arguments.add_argument("--binary", help="our imagine, instead of one built now")
    arguments.add_argument("--folder", default=os.path.join(compare.ROOT, "benches", "record"))
    arguments.add_argument("--diffusers", action="store_true", help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.diffusers:
        return as_diffusers(options)
    if not options.model:
        cache = os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache"))
        options.model = os.path.join(cache, "tenure", "random-sd15")
    if not os.path.exists(options.model):
        make_model(options.model)
    binary = compare.built("imagine", options.binary)
    settings = {"threads": options.threads, "rounds": options.rounds, "size": options.size, "model": os.path.basename(options.model)}
    record = compare.begin_record(settings)
    sides = {"tenure": lambda: ours(binary, options, 2), "diffusers": lambda: diffusers(options)}
    runs = {name: [] for name in sides}
    for i in range(options.rounds):
        for name in list(sides)[:: 1 if i % 2 == 0 else -1]:
            runs[name].append(sides[name]())
            print(name, {key: round(value, 3) for key, value in runs[name][-1].items()}, file=sys.stderr)
    median = lambda name, key: statistics.median(run[key] for run in runs[name])
    print(f"{'phase':10}{'tenure s':>12}{'diffusers s':>14}{'ratio':>8}")
    for phase in PHASES:
        mine, peer = median("tenure", phase), median("diffusers", phase)
        print(f"{phase:10}{mine:12.2f}{peer:14.2f}{peer / mine:8.2f}")
        record["results"].append({"phase": phase, "tenure_s": mine, "diffusers_s": peer, "ratio": peer / mine})
    peaks = {name: median(name, "peak_bytes") for name in sides}
    print(f"{'peak MB':10}{peaks['tenure'] / 1e6:12.0f}{peaks['diffusers'] / 1e6:14.0f}")
    record["results"].append({"peak_bytes": peaks})
    compare.write_record(record, options.folder, options.name)


if __name__ == "__main__":
    main()
