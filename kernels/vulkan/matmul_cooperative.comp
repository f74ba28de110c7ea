// x w^T (+ bias) for many rows, by cooperative matrices (GL_KHR_cooperative_matrix): a workgroup computes 64 features of
// 128 rows, 32 elements of both at a time in shared memory as f16, of which each subgroup multiplies its share into f32
// sums. The rows are those of rows_to_f16.
//
// So that numbers of any size fit into f16, the weights of the workgroup are multiplied by a power of two that brings the
// largest to 2^14 or above: where larger ones come, what was summed up so far is scaled down to them.
#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_shader_16bit_storage : require
#extension GL_EXT_shader_explicit_arithmetic_types_float16 : require
#extension GL_KHR_cooperative_matrix : require
#extension GL_KHR_memory_scope_semantics : require
#extension GL_KHR_shader_subgroup_arithmetic : require
#extension GL_KHR_shader_subgroup_basic : require

#define PUSH uint k; uint row_words; uint features; uint out_cols; uint out_first; uint has_bias;
#include "common.glsl"
#define WEIGHT_BINDING 1
#include "quant.glsl"
#include "f16_rows.glsl"
#include "result.glsl"

// Rows, features and elements of the matrices, and invocations of a subgroup: a byte each.
layout(constant_id = 1) const uint SHAPE = 0x20101010u;
const uint M = SHAPE & 0xffu;
const uint N = (SHAPE >> 8) & 0xffu;
const uint K = (SHAPE >> 16) & 0xffu;
const uint SUBGROUP = SHAPE >> 24;

layout(set = 1, binding = 0, std430) readonly buffer X { f16vec4 x4[]; };
layout(set = 1, binding = 0, std430) readonly buffer XScales { float x_scales[]; };

const uint FEATURES = 64u;
const uint ROWS = 128u;
// Elements of a row taken at a time, in fours; two fours more keep rows in different banks.
const uint DEPTH = BLOCK;
const uint STRIDE = DEPTH / 4u + 2u;
// Matrices of a subgroup: side by side and below one another.
const uint WIDE = 2u;
const uint HIGH = (ROWS / M) * (FEATURES / N) / (LANES / SUBGROUP) / WIDE;

shared f16vec4 tile_w[FEATURES * STRIDE];
shared f16vec4 tile_x[ROWS * STRIDE];
// The sums of one matrix of each subgroup.
shared float staged[LANES / SUBGROUP * M * N];
// The largest of the weights that each subgroup decoded, of this turn and the next.
shared float largest[2][LANES / SUBGROUP];

// This lane's unit of weights from element `from` on, two of a row: zeros beyond the weights. Tells of the largest.
void take(uint first_feature, uint from, out vec4 w[4]) {
    uint f = gl_LocalInvocationID.x / 2u;
    uint unit = from / UNIT + gl_LocalInvocationID.x % 2u;
    w = vec4[](vec4(0.0), vec4(0.0), vec4(0.0), vec4(0.0));
    if (first_feature + f < features && UNIT * unit < k) {
        decode(base[1] + (first_feature + f) * row_words, k, from / BLOCK, gl_LocalInvocationID.x % 2u, w);
    }
    vec4 four = max(max(abs(w[0]), abs(w[1])), max(abs(w[2]), abs(w[3])));
    float most = subgroupMax(max(max(four.x, four.y), max(four.z, four.w)));
    if (subgroupElect()) {
        largest[from / DEPTH % 2u][gl_SubgroupID] = most;
    }
}

void main() {
    uint lane = gl_LocalInvocationID.x;
    uint first_feature = gl_WorkGroupID.x * FEATURES;
    uint row = gl_WorkGroupID.y * ROWS;
    uint rows = row_count();
    if (row >= rows) {
        return;
    }
    rows = min(rows - row, ROWS);
    uint x_words = f16_row_words(k);
    uint first_row = base[0] + row * x_words;
    vec4 w[4];
    take(first_feature, 0u, w);
    barrier();

    // This subgroup's matrices.
    const uint BESIDE = FEATURES / N / WIDE;
    uint across = gl_SubgroupID % BESIDE * WIDE * N;
    uint down = gl_SubgroupID / BESIDE * HIGH * M;
    coopmat<float, gl_ScopeSubgroup, M, N, gl_MatrixUseAccumulator> sums[HIGH * WIDE];
    for (uint i = 0u; i < HIGH * WIDE; i++) {
        sums[i] = coopmat<float, gl_ScopeSubgroup, M, N, gl_MatrixUseAccumulator>(0.0);
    }
    // Of the largest weight so far.
    uint exponent = 0u;
    for (uint from = 0u; from < k; from += DEPTH) {
        float most = 0.0;
        for (uint i = 0u; i < LANES / SUBGROUP; i++) {
            most = max(most, largest[from / DEPTH % 2u][i]);
        }
        if (exponent_of(most) > exponent) {
            // Below 2^-126, nothing is left of what was.
            uint less = exponent_of(most) - exponent;
            float factor = less < 127u ? uintBitsToFloat((127u - less) << 23) : 0.0;
            for (uint i = 0u; i < HIGH * WIDE; i++) {
                sums[i] = sums[i] * factor;
            }
            exponent += less;
        }
        for (uint i = 0u; i < 4u; i++) {
            tile_w[lane / 2u * STRIDE + 4u * (lane % 2u) + i] = f16vec4(w[i] * scale_of(exponent));
        }
        for (uint n = lane; n < ROWS * DEPTH / 4u; n += LANES) {
            uint r = n / (DEPTH / 4u);
            uint four = n % (DEPTH / 4u);
            f16vec4 v = f16vec4(0.0);
            // Rows end with zeros up to the end of a four.
            if (r < rows && from + 4u * four < k) {
                v = x4[(first_row + r * x_words + HEADER + from / 2u) / 2u + four];
            }
            tile_x[r * STRIDE + four] = v;
        }
        barrier();
        // The next ones, while these are multiplied.
        take(first_feature, from + DEPTH, w);
        for (uint e = 0u; e < DEPTH; e += K) {
            coopmat<float16_t, gl_ScopeSubgroup, K, N, gl_MatrixUseB> b[WIDE];
            for (uint j = 0u; j < WIDE; j++) {
                coopMatLoad(b[j], tile_w, (across + N * j) * STRIDE + e / 4u, STRIDE, gl_CooperativeMatrixLayoutColumnMajor);
            }
            for (uint i = 0u; i < HIGH; i++) {
                if (down + M * i < rows) {
                    coopmat<float16_t, gl_ScopeSubgroup, M, K, gl_MatrixUseA> a;
                    coopMatLoad(a, tile_x, (down + M * i) * STRIDE + e / 4u, STRIDE, gl_CooperativeMatrixLayoutRowMajor);
                    for (uint j = 0u; j < WIDE; j++) {
                        sums[WIDE * i + j] = coopMatMulAdd(a, b[j], sums[WIDE * i + j]);
                    }
                }
            }
        }
        barrier();
    }
    uint room = gl_SubgroupID * M * N;
    for (uint i = 0u; i < HIGH * WIDE; i++) {
        coopMatStore(sums[i], staged, room, N, gl_CooperativeMatrixLayoutRowMajor);
        barrier();
        for (uint e = gl_SubgroupInvocationID; e < M * N; e += SUBGROUP) {
            uint r = down + M * (i / WIDE) + e / N;
            uint f = first_feature + across + N * (i % WIDE) + e % N;
            if (r < rows && f < features) {
                put(row + r, f, staged[room + e] * inverse_of(exponent) * x_scales[first_row + r * x_words]);
            }
        }
        barrier();
    }
}
