#!/usr/bin/env python3
"""What the compiler of AMD's GPUs makes of the kernels: registers, spills, shared memory, code. Needs no such GPU.

    isa.py [--driver DIR] [--family navi31] [-k PART ...] [-t TYPE ... | --all-types] [--binaries DIR]
           [--wave N] [--count REGEX ...] [--dump DIR] [--json FILE]

`.ci/driver` puts Mesa's RADV into DIR first, if it is not there, and installs nothing; it needs Debian on x86-64. RADV compiles for a device that is not there but named: navi31 is RDNA3, navi21 RDNA2, vega20 GFX9.
The table is Markdown. "Inverse Throughput" and "Latency" are the compiler's own estimates in cycles, which take eight
runs for every loop and one in two for branches: they compare versions of a kernel and nothing else. The exit status is
1 if a kernel spills vector registers or has arrays in memory (scratch) for want of them.

    isa.py -k matmul_cooperative -t Q4_K --count v_wmma --count ds_load --dump /tmp/isa

`--dump` writes what the compiler had at each stage (NIR, ACO's form, assembly) into a file for each pipeline; `--count`
adds a column with the number of instructions of the assembly whose mnemonic the regular expression matches from its
start.
"""

import argparse
import ctypes
import json
import os
import re
import struct
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

# Set in the environment of the process that has the driver.
WITH_DRIVER = "TENURE_ISA_WITH_DRIVER"

TYPES = ["F16", "Q4_0", "Q4_K", "Q6_K", "Q8_0"]
KV_TYPES = {"f32": 0, "f16": 1, "q8_0": 8}
# What constant 0 is for kernels that have neither weights nor a cache.
OTHERS = {"copy": ["all", "wanted"], "glu": ["silu", "gelu"], "rope": ["adjacent", "halves"], "top_k": ["all", "join"]}
HEAD_DIM, SHAPE = 128, (16, 16, 16)  # rows, columns and depth of a cooperative matrix

# RADV's names of the statistics that make columns.
COLUMNS = [
    "VGPRs", "SGPRs", "Spilled VGPRs", "Spilled SGPRs", "LDS size", "Scratch size", "Subgroups per SIMD", "Code size",
    "Instructions", "VALU", "VMEM", "Inverse Throughput", "Latency",
]

COMPUTE = 0x20
CAPTURE_STATISTICS, CAPTURE_REPRESENTATIONS, FULL_SUBGROUPS = 0x40, 0x80, 0x2
UNIFORM_BUFFER, STORAGE_BUFFER = 6, 7
COOPERATIVE_MATRIX = 6022  # SPIR-V's number of the capability
COMPONENTS = ["f16", "f32", "f64", "s8", "s16", "s32", "s64", "u8", "u16", "u32", "u64"]

KEPT = []  # what structures point to has to live as long as they do


def pack(form: str, *values) -> ctypes.Array:
    """A C structure or an array; a buffer among the values stands for its address, and none for null."""
    KEPT.extend(value for value in values if isinstance(value, ctypes.Array))
    values = [ctypes.addressof(value) if isinstance(value, ctypes.Array) else value for value in values]
    values = [0 if value is None else value for value in values]
    data = struct.pack(form + "0P", *values)
    return ctypes.create_string_buffer(data, len(data))


def string(data: bytes) -> str:
    return data.split(b"\0")[0].decode()


class Device:
    """The first device of the loader, with all features that it reports."""

    def __init__(self):
        self.vulkan = ctypes.CDLL("libvulkan.so.1")
        for name in ("vkGetInstanceProcAddr", "vkGetDeviceProcAddr"):
            getattr(self.vulkan, name).restype = ctypes.c_void_p
        application = pack("iPPIPII", 0, None, None, 0, None, 0, 1 << 22 | 3 << 12)
        self.instance = self.created("vkCreateInstance", pack("iPIPIPIP", 1, 0, 0, application, 0, 0, 0, 0))
        count, first = pack("I", 1), pack("Q", 0)
        self.call("vkEnumeratePhysicalDevices", self.instance, count, first)
        self.gpu = struct.unpack_from("Q", first)[0]
        if not self.gpu:
            raise SystemExit("the driver has no such device")
        # Vulkan 1.1, 1.2 and 1.3, cooperative matrices, statistics; how many features each has.
        chain, features = None, {}
        for kind, length in ((49, 12), (51, 47), (53, 15), (1000506000, 2), (1000269000, 1), (1000059000, 55)):
            chain = features[kind] = pack(f"iP{4 * length}x", kind, chain)
        self.vulkan.vkGetPhysicalDeviceFeatures2(ctypes.c_uint64(self.gpu), chain)
        # Checks of bounds are other code than what runs without them, and nobody asks for them.
        struct.pack_into("I", chain, 16, 0)

        def feature(kind: int, at: int) -> bool:
            return struct.unpack_from("I", features[kind], 16 + 4 * at)[0] == 1

        self.has_matrices = feature(1000506000, 0)
        self.describe({"storageBuffer16BitAccess": feature(49, 0), "storageBuffer8BitAccess": feature(51, 2)})
        names = [b"VK_KHR_pipeline_executable_properties"] + [b"VK_KHR_cooperative_matrix"] * self.has_matrices
        names = [ctypes.create_string_buffer(name) for name in names]
        queue = pack("iPIIIP", 2, None, 0, 0, 1, pack("f", 1.0))
        self.device = self.created("vkCreateDevice", pack(
            "iPIIPIPIPP", 3, chain, 0, 1, queue, 0, 0, len(names), pack(f"{len(names)}P", *names), None), of=self.gpu)
        # The uniform buffer and the step's words, and the operands: more than some kernels have does no harm.
        sets = []
        for kinds in ([UNIFORM_BUFFER, STORAGE_BUFFER], [STORAGE_BUFFER] * 4):
            bindings = [field for at, kind in enumerate(kinds) for field in (at, kind, 1, COMPUTE, None)]
            bindings = pack("IIIIP" * len(kinds), *bindings)
            info = pack("iPIIP", 32, None, 0, len(kinds), bindings)
            sets.append(self.created("vkCreateDescriptorSetLayout", info, of=self.device))
        push = pack("III", COMPUTE, 0, 128)
        info = pack("iPIIPIP", 30, None, 0, 2, pack("2Q", *sets), 1, push)
        self.layout = self.created("vkCreatePipelineLayout", info, of=self.device)

    def call(self, name: str, *arguments) -> None:
        """Calls a function that returns a VkResult."""
        function = getattr(self.vulkan, name, None)
        if function is None:
            # An extension's.
            of, get = ("device", "Device") if hasattr(self, "device") else ("instance", "Instance")
            find = getattr(self.vulkan, f"vkGet{get}ProcAddr")
            function = ctypes.CFUNCTYPE(ctypes.c_int)(find(ctypes.c_uint64(getattr(self, of)), name.encode()))
        result = function(*(ctypes.c_uint64(one) if isinstance(one, int) else one for one in arguments))
        if result < 0:
            raise SystemExit(f"{name}: error {result}")

    def created(self, name: str, info: ctypes.Array, of: int | None = None) -> int:
        made = pack("Q", 0)
        self.call(name, *([] if of is None else [of]), info, None, made)
        return struct.unpack("Q", made)[0]

    def listed(self, name: str, *what, kind: int, form: str) -> list[tuple]:
        """The structures of a function that tells their number first."""
        count, size = pack("I", 0), struct.calcsize(form + "0P")
        self.call(name, *what, count, None)
        array = ctypes.create_string_buffer(struct.unpack_from("I", count)[0] * size)
        for at in range(0, len(array), size):
            struct.pack_into("i", array, at, kind)
        self.call(name, *what, count, array)
        return [struct.unpack_from(form, array, at) for at in range(0, len(array), size)]

    def describe(self, features: dict[str, bool]) -> None:
        """What the device reports of itself."""
        chain, properties = None, {}
        # Of Vulkan 1.1, 1.2 and 1.3, and the plain ones; more bytes than any of them has.
        for kind in (50, 52, 54, 1000059001):
            chain = properties[kind] = pack("iP2048x", kind, chain)
        self.vulkan.vkGetPhysicalDeviceProperties2(ctypes.c_uint64(self.gpu), chain)

        def field(kind: int, form: str, at: int):
            return struct.unpack_from(form, properties[kind], 16 + at)[0]

        self.sizes = [field(54, "I", at) for at in (0, 4)]
        matrices = []
        if self.has_matrices:  # RADV lists them for devices that have none
            name = "vkGetPhysicalDeviceCooperativeMatrixPropertiesKHR"
            matrices = self.listed(name, self.gpu, kind=1000506001, form="iP9I")

        def component(number: int) -> str:
            return COMPONENTS[number] if number < len(COMPONENTS) else str(number)

        self.facts = {
            "device": string(field(1000059001, "256s", 20)),
            "driver": string(field(52, "256s", 4)) + " " + string(field(52, "256s", 260)),
            "subgroup size": field(50, "I", 48),
            "subgroup sizes": self.sizes,
            "integerDotProduct4x8BitPackedSignedAccelerated": field(54, "I", 56) == 1,
            "shaderDenormPreserveFloat16": field(52, "I", 540) == 1,
            **features,
            "cooperative matrices": [
                f"{m}x{n}x{k} {component(a)}*{component(b)}+{component(c)}={component(d)}" + " saturating" * sat
                for _, _, m, n, k, a, b, c, d, sat, _ in matrices
            ],
        }

    def compiled(self, code: bytes, constants: dict[int, int], subgroup: int | None, texts: bool) -> tuple[dict, dict]:
        """A pipeline's statistics and, if wanted, what the compiler had at each stage."""
        module = self.created("vkCreateShaderModule", pack("iPINP", 16, 0, 0, len(code), pack(f"{len(code)}s", code)),
                              of=self.device)
        entries = [field for at, identity in enumerate(constants) for field in (identity, 4 * at, 4)]
        entries = pack("IIN" * len(constants), *entries)
        data = pack(f"{len(constants)}I", *constants.values())
        constants = pack("IPNP", len(constants), entries, 4 * len(constants), data)
        size = pack("iPI", 1000225001, None, subgroup) if subgroup else None
        flags = CAPTURE_STATISTICS | (CAPTURE_REPRESENTATIONS if texts else 0)
        # The stage lies inside, aligned as a pointer is.
        entry, full = ctypes.create_string_buffer(b"main"), FULL_SUBGROUPS if subgroup else 0
        info = pack("iPI0P" + "iPIIQPP" + "QQi", 29, None, flags, 18, size, full, COMPUTE, module, entry, constants,
                    self.layout, 0, -1)
        pipeline = pack("Q", 0)
        self.call("vkCreateComputePipelines", self.device, 0, 1, info, None, pipeline)
        pipeline = struct.unpack("Q", pipeline)[0]
        whole, part = pack("iPQ", 1000269001, None, pipeline), pack("iPQI", 1000269003, None, pipeline, 0)
        properties = self.listed("vkGetPipelineExecutablePropertiesKHR", self.device, whole, kind=1000269002,
                                 form="iPI256s256sI")
        statistics = self.listed("vkGetPipelineExecutableStatisticsKHR", self.device, part, kind=1000269004,
                                 form="iP256s256siQ")
        numbers = {"subgroup": properties[0][5], **{string(one[2]): one[5] for one in statistics}}
        return numbers, self.texts(part) if texts else {}

    def texts(self, part: ctypes.Array) -> dict[str, str]:
        name, form, kind = "vkGetPipelineExecutableInternalRepresentationsKHR", "iP256s256sINP", 1000269005
        sizes = [one[5] for one in self.listed(name, self.device, part, kind=kind, form=form)]
        buffers = [ctypes.create_string_buffer(size) for size in sizes]
        fields = [field for buffer in buffers for field in (kind, None, b"", b"", 0, len(buffer), buffer)]
        array = pack(form * len(buffers), *fields)
        self.call(name, self.device, part, pack("I", len(buffers)), array)
        names = [string(one[2]) for one in struct.iter_unpack(form, array)]
        return {name: string(buffer.raw) for name, buffer in zip(names, buffers)}


def weight_types() -> dict[str, int]:
    with open(os.path.join(ROOT, "kernels", "vulkan", "quant.glsl"), encoding="utf-8") as file:
        found = re.findall(r"(?m)^#define ((?:B?F|I?Q|MXFP)\d\w*) (\d+)u$", file.read())
    return {name: int(number) for name, number in found if not re.search("_(LEN|WORDS|TAIL)$", name)}


def cases(name: str, code: bytes, device: Device, wanted: list[str], numbers: dict[str, int],
          wave: int | None) -> list[tuple]:
    """Type, specialisation constants and subgroup size (none: the driver's choice) of each pipeline of a kernel."""
    kernel = name.split(".")[0]
    # OpCapability with its operand.
    cooperative = struct.pack("<2I", 2 << 16 | 17, COOPERATIVE_MATRIX) in code
    if cooperative and not device.has_matrices:
        print(f"{name}: the device has no cooperative matrices", file=sys.stderr)
        return []
    if kernel.startswith(("embed", "matvec", "matmul")):
        left = ["F32"] if cooperative else ["F32", "F16", "BF16"] if kernel.endswith("integer") else []
        kinds = {kind: numbers[kind] for kind in wanted if kind not in left}
    elif kernel.startswith(("attention", "kv_store")) and kernel != "attention_join":
        kinds = KV_TYPES
    else:
        kinds = {kind: number for number, kind in enumerate(OTHERS.get(kernel, [""]))}
    made = []
    # Cooperative matrices are told the size.
    sizes = [64, 32] if cooperative and not wave else [wave]
    for kind, number in kinds.items():
        for size in sizes:
            constants = {0: number}
            if cooperative:
                constants[1] = SHAPE[0] | SHAPE[1] << 8 | SHAPE[2] << 16 | size << 24
            elif kernel.startswith("attention"):
                constants[1] = HEAD_DIM
            made.append((kind, constants, size))
    return made


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--driver", default=os.path.join(ROOT, "target", "driver-radv"), help="folder of the driver")
    parser.add_argument("--family", default="navi31", help="the GPU, by RADV's name")
    parser.add_argument("-k", "--kernel", action="append", help="only kernels whose names contain this")
    parser.add_argument("-t", "--type", action="append", help=f"types of weights (default: {' '.join(TYPES)})")
    parser.add_argument("--all-types", action="store_true")
    parser.add_argument("--wave", type=int, choices=[32, 64], help="subgroup size of all kernels")
    parser.add_argument("--binaries", default=os.path.join(ROOT, "kernels", "prebuilt", "vulkan"))
    parser.add_argument("--count", action="append", default=[], help="count instructions whose mnemonics match")
    parser.add_argument("--dump", help="folder for what the compiler made of each pipeline")
    parser.add_argument("--json", help="file for all statistics")
    args = parser.parse_args()

    if not os.environ.get(WITH_DRIVER):
        # Once more, by the driver's own loader and C library.
        driver = os.path.abspath(args.driver)
        subprocess.run([os.path.join(ROOT, ".ci", "driver"), "radv", driver], stdout=sys.stderr, check=True)
        os.environ[WITH_DRIVER] = "1"
        run = os.path.join(driver, "run")
        os.execv(run, [run, os.path.realpath(sys.executable), os.path.abspath(__file__), *sys.argv[1:]])
    # Read by the driver in this process, so before it is loaded.
    os.environ.update(RADV_FORCE_FAMILY=args.family, MESA_SHADER_CACHE_DISABLE="true")

    device, numbers = Device(), weight_types()
    wanted = list(numbers) if args.all_types else args.type or TYPES
    if args.wave and not device.sizes[0] <= args.wave <= device.sizes[1]:
        raise SystemExit(f"the device has no subgroups of {args.wave}")
    if unknown := set(wanted) - set(numbers):
        raise SystemExit(f"no types of weights: {', '.join(unknown)}; there are {', '.join(numbers)}")
    for name, value in device.facts.items():
        print(f"- {name}: {', '.join(map(str, value)) or 'none' if isinstance(value, list) else value}")
    print()
    heads = ["kernel", "type", "wave", *COLUMNS, *(f"`{pattern}`" for pattern in args.count)]
    print("| " + " | ".join(heads) + " |\n| --- | --- |" + " ---: |" * (len(heads) - 2))
    results = []
    for file in sorted(os.listdir(args.binaries)):
        name = file.removesuffix(".spv")
        if name == file or args.kernel and not any(part in name for part in args.kernel):
            continue
        with open(os.path.join(args.binaries, file), "rb") as binary:
            code = binary.read()
        for kind, constants, size in cases(name, code, device, wanted, numbers, args.wave):
            statistics, texts = device.compiled(code, constants, size, bool(args.count or args.dump))
            # The first word of a line, or what stands beside it in an instruction of two.
            assembly = re.findall(r"(?m)(?:^\s*|:: )([a-z]\w+)", texts.get("Assembly", ""))
            counts = {pattern: sum(bool(re.match(pattern, word)) for word in assembly) for pattern in args.count}
            results.append({"kernel": name, "type": kind, "constants": constants, **statistics, "counts": counts})
            columns = (statistics.get(of, "") for of in COLUMNS)
            row = [name, kind, statistics["subgroup"], *columns, *counts.values()]
            print("| " + " | ".join(map(str, row)) + " |", flush=True)
            if args.dump:
                os.makedirs(args.dump, exist_ok=True)
                stem = "-".join(filter(None, [args.family, name, kind, str(statistics["subgroup"])]))
                with open(os.path.join(args.dump, stem + ".txt"), "w", encoding="utf-8") as out:
                    out.writelines(f"==== {stage}\n{text}\n" for stage, text in texts.items())
    if not results:
        raise SystemExit("no such kernels")
    short = [f"{one['kernel']} {one['type']} {one['subgroup']}" for one in results
             if one["Spilled VGPRs"] or one["Scratch size"]]
    print(f"\nSpill vector registers or use scratch: {', '.join(short) or 'none'}.")
    if args.json:
        with open(args.json, "w", encoding="utf-8") as out:
            json.dump({"family": args.family, "facts": device.facts, "results": results}, out, indent=1)
            out.write("\n")
    return 1 if short else 0


if __name__ == "__main__":
    sys.exit(main())
