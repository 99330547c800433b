"""Kernels, exchanges and bytes of compiled programs, by texts in XLA's form and by programs whose bytes are known."""

import jax
import jax.numpy as jnp
import pytest

from fingerprint_jax.training import hlo

GPU = """HloModule jit_step, is_scheduled=true

%fused_gather (param_0: u8[500,64,64,8], param_1: s32[8]) -> bf16[8,64,64,8] {
  %param_0 = u8[500,64,64,8]{3,2,1,0} parameter(0), metadata={scheduling_name="param_0"}
  %param_1 = s32[8]{0} parameter(1)
  %bitcast = s32[8,1]{1,0} bitcast(%param_1)
  %gather = u8[8,64,64,8]{3,2,1,0} gather(%param_0, %bitcast), offset_dims={1,2,3}
  ROOT %convert = bf16[8,64,64,8]{3,2,1,0} convert(%gather)
}

%gemm (parameter_0: f32[8,32], parameter_1: f32[32,32]) -> f32[8,32] {
  %parameter_0 = f32[8,32]{1,0} parameter(0)
  %parameter_1 = f32[32,32]{1,0} parameter(1)
  ROOT %dot = f32[8,32]{1,0} dot(%parameter_0, %parameter_1), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%body (p: (f32[8,32], f32[32,32])) -> (f32[8,32], f32[32,32]) {
  %p = (f32[8,32]{1,0}, f32[32,32]{1,0}) parameter(0)
  %x = f32[8,32]{1,0} get-tuple-element(%p), index=0
  %w = f32[32,32]{1,0} get-tuple-element(%p), index=1
  %y = f32[8,32]{1,0} fusion(%x, %w), kind=kCustom, calls=%gemm
  ROOT %t = (f32[8,32]{1,0}, f32[32,32]{1,0}) tuple(%y, %w)
}

%condition (q: (f32[8,32], f32[32,32])) -> pred[] {
  %q = (f32[8,32]{1,0}, f32[32,32]{1,0}) parameter(0)
  ROOT %yes = pred[] constant(true)
}

%wrapped (z: f32[16]) -> f32[16] {
  %z = f32[16]{0} parameter(0)
  ROOT %exchanged = f32[16]{0} all-to-all(%z), dimensions={0}
}

ENTRY %main_spmd (cache: u8[500,64,64,8], index: s32[8], k: bf16[3,3,8,16]) -> f32[8,32] {
  %cache = u8[500,64,64,8]{3,2,1,0} parameter(0), sharding={replicated}
  %index = s32[8]{0} parameter(1), sharding={devices=[8]<=[8]}
  %k = bf16[3,3,8,16]{3,2,1,0} parameter(2)
  %images = bf16[8,64,64,8]{3,2,1,0} fusion(%cache, %index), kind=kLoop, calls=%fused_gather
  %conv = (bf16[8,64,64,16]{3,2,1,0}, u8[0]{0}) custom-call(%images, %k), custom_call_target="__cudnn$convForward"
  %v = f32[16]{0} constant({...})
  %mean-start = f32[16]{0} all-reduce-start(%v), channel_id=1, to_apply=%add
  %mean = f32[16]{0} all-reduce-done(%mean-start)
  %all-start = (f32[16]{0}, f32[128]{0}) all-gather-start(%mean), dimensions={0}
  %all = f32[128]{0} all-gather-done(%all-start)
  %moving = ((f32[16]{0}), f32[16]{0}) async-start(%mean), calls=%wrapped
  %moved = f32[16]{0} async-done(%moving)
  %x0 = f32[8,32]{1,0} constant({...})
  %w0 = f32[32,32]{1,0} constant({...})
  %t0 = (f32[8,32]{1,0}, f32[32,32]{1,0}) tuple(%x0, %w0)
  %loop = (f32[8,32]{1,0}, /*index=1*/f32[32,32]{1,0}) while(%t0), condition=%condition, body=%body, TRIPS
  %last = f32[8,32]{1,0} get-tuple-element(%loop), index=0
  %product = (f32[8,32]{1,0}, s8[64]{0}) custom-call(%last, %w0), custom_call_target="__cublas$lt$matmul"
  ROOT %result = f32[8,32]{1,0} get-tuple-element(%product), index=0
}
""".replace("TRIPS", 'backend_config={"known_trip_count":{"n":"5"}}')

TPU = """HloModule jit_step, is_scheduled=true

%fused_computation (p0: u8[16,64,64,8], p1: bf16[3,3,8,16]) -> f32[16,16] {
  %p0 = u8[16,64,64,8]{0,3,2,1:T(8,128)(4,1)S(1)} parameter(0)
  %p1 = bf16[3,3,8,16]{3,2,1,0:T(8,128)(2,1)S(1)} parameter(1)
  %convert = bf16[16,64,64,8]{0,3,2,1:T(8,128)(2,1)} convert(%p0)
  %conv = f32[16,64,64,16]{0,3,2,1:T(8,128)} convolution(%convert, %p1), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_01io->b01f
  ROOT %max = f32[16,16]{1,0:T(8,128)S(1)} slice(%conv), slice={[0:16]}
}

ENTRY %main_spmd (images: u8[16,64,64,8], k: bf16[3,3,8,16]) -> bf16[64,64] {
  %images = u8[16,64,64,8]{0,3,2,1:T(8,128)(4,1)S(1)} parameter(0)
  %k = bf16[3,3,8,16]{3,2,1,0:T(8,128)(2,1)} parameter(1)
  %copy-start = (bf16[3,3,8,16]{3,2,1,0:T(8,128)(2,1)S(1)}, bf16[3,3,8,16]{3,2,1,0:T(8,128)(2,1)}, u32[]{:S(2)}) copy-start(%k)
  %copy-done = bf16[3,3,8,16]{3,2,1,0:T(8,128)(2,1)S(1)} copy-done(%copy-start)
  %fusion = f32[16,16]{1,0:T(8,128)S(1)} fusion(%images, %copy-done), kind=kOutput, calls=%fused_computation
  %all-gather = f32[64,16]{1,0:T(8,128)S(1)} all-gather(%fusion), channel_id=2, dimensions={0}
  %permuted = f32[64,16]{1,0:T(8,128)S(1)} collective-permute(%all-gather), source_target_pairs={{0,1}}
  ROOT %product = bf16[64,64]{1,0:T(8,128)(2,1)} dot(%permuted, %permuted), lhs_contracting_dims={1}, rhs_contracting_dims={1}
}
"""


def test_kernels_and_exchanges_of_a_gpu():
    program = hlo.read(GPU)
    # The product of the loop runs five times.
    assert program.kernels == {"fusions with products": 5, "other fusions": 1, "cuDNN": 1, "cuBLAS": 1}
    assert program.collectives == {"all-reduce": (1, 64), "all-gather": (1, 512), "all-to-all": (1, 64)}
    assert program.loops == 0
    # A ring of eight: all-reduce sends twice 7/8 of the array, the others 7/8 of what they give.
    assert program.sent(8) == 2 * 64 * 7 / 8 + 512 * 7 / 8 + 64 * 7 / 8
    assert program.sent(1) == 0


def test_bytes_of_a_gpu_are_operands_and_results_of_kernels():
    image, kernel = 64 * 64 * 8, 3 * 3 * 8 * 16
    gather = 8 * image + 8 * 4 + 2 * 8 * image  # of the 500 images those that are taken
    conv = 2 * 8 * image + 2 * kernel + 2 * 8 * 64 * 64 * 16
    loop = 5 * 4 * (8 * 32 + 32 * 32 + 8 * 32)
    product = 4 * (8 * 32 + 32 * 32 + 8 * 32) + 64
    exchanges = 2 * (64 + 512 + 64)
    assert hlo.read(GPU).bytes == gather + conv + loop + product + exchanges


def test_bytes_of_a_tpu_are_whole_tiles_and_not_what_lies_on_the_chip():
    program = hlo.read(TPU)
    assert program.kernels == {"copies": 1, "fusions with products": 1, "products": 1}
    assert program.collectives == {"all-gather": (1, 4096), "collective-permute": (1, 4096)}
    # 8 x 16 of the kernel takes a tile of 8 x 128; of the product 64 x 64 takes 64 x 128.
    assert program.bytes == 2 * 3 * 3 * 8 * 128 + 2 * 64 * 128
    assert program.sent(4) == 4096 * 3 / 4 + 4096


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ("f32[]", 4),
        ("(f32[8,3]{1,0}, pred[])", 97),
        ("(bf16[2,2]{1,0}, /*index=1*/u8[0]{0}, token[])", 8),
        ("s4[7]{0}", 4),
        ("f8e4m3fn[16]{0}", 16),
        ("c64[2]{0}", 16),
    ],
)
def test_bytes_of_a_shape(shape, size):
    assert hlo.size_of(shape) == size


def test_a_program_that_was_compiled_here():
    shape = jax.ShapeDtypeStruct((64, 64), jnp.float32)
    program = hlo.read(jax.jit(lambda a, b: a @ b).lower(shape, shape).compile().as_text())
    assert program.bytes == 3 * 4 * 64 * 64 and sum(program.kernels.values()) == 1 and not program.collectives


def test_a_loop_of_unknown_length_is_told():
    assert hlo.read(GPU.replace('"known_trip_count":{"n":"5"}', "")).loops == 1
    with pytest.raises(ValueError, match="no ENTRY"):
        hlo.read("nothing")


def test_of_an_array_that_is_fetched_in_slices_each_is_read_once():
    slices = "\n".join(
        f"  %begin.{i} = ((bf16[4,16,128]{{2,1,0:T(8,128)(2,1)}}), bf16[1,16,128]{{2,1,0:T(8,128)(2,1)S(1)}}, s32[]{{:S(2)}})"
        f" slice-start(%x), slice={{[{i}:{i + 1}], [0:16], [0:128]}}\n"
        f"  %end.{i} = bf16[1,16,128]{{2,1,0:T(8,128)(2,1)S(1)}} slice-done(%begin.{i})"
        for i in range(4)
    )
    whole = "  %x = bf16[4,16,128]{2,1,0:T(8,128)(2,1)} parameter(0)"
    program = hlo.read(f"ENTRY %main (x: bf16[4,16,128]) -> bf16[1,16,128] {{\n{whole}\n{slices}\n}}\n")
    assert program.bytes == 4 * 16 * 128 * 2 and program.kernels == {"copies": 4}
