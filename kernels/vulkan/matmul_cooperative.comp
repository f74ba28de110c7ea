// x w^T (+ bias) for many rows, by cooperative matrices (GL_KHR_cooperative_matrix): a workgroup computes 64 features of
// 128 rows, 32 elements of both at a time in shared memory as f16, of which each subgroup multiplies its share into f32
// sums.
//
// So that numbers of any size fit into f16, each row is multiplied by a power of two that brings its largest to 2^14 or
// above, and so are the weights of the workgroup: where larger ones come, what was summed up so far is scaled down to
// them.
#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_shader_explicit_arithmetic_types_float16 : require
#extension GL_KHR_cooperative_matrix : require
#extension GL_KHR_memory_scope_semantics : require
#extension GL_KHR_shader_subgroup_arithmetic : require
#extension GL_KHR_shader_subgroup_basic : require

#define PUSH uint k; uint row_words; uint features; uint out_cols; uint out_first; uint has_bias;
#include "common.glsl"
#define WEIGHT_BINDING 1
#include "quant.glsl"

// Rows, features and elements of the matrices, and invocations of a subgroup: a byte each.
layout(constant_id = 1) const uint SHAPE = 0x20101010u;
const uint M = SHAPE & 0xffu;
const uint N = (SHAPE >> 8) & 0xffu;
const uint K = (SHAPE >> 16) & 0xffu;
const uint SUBGROUP = SHAPE >> 24;

layout(set = 1, binding = 0, std430) readonly buffer X { float x[]; };
layout(set = 1, binding = 0, std430) readonly buffer XByFour { vec4 x4[]; };
layout(set = 1, binding = 2, std430) readonly buffer Bias { float bias[]; };
layout(set = 1, binding = 3, std430) writeonly buffer Out { float result[]; };

const uint FEATURES = 64u;
const uint ROWS = 128u;
// Elements of a row taken at a time; eight more keep rows in different banks.
const uint DEPTH = 2u * UNIT;
const uint STRIDE = DEPTH + 8u;
// Matrices of a subgroup: side by side and below one another.
const uint WIDE = 2u;
const uint HIGH = (ROWS / M) * (FEATURES / N) / (LANES / SUBGROUP) / WIDE;
// Lanes that look through a row.
const uint SHARERS = 8u;

shared float16_t tile_w[FEATURES * STRIDE];
shared float16_t tile_x[ROWS * STRIDE];
// What lanes find of rows; then the sums of one matrix of each subgroup.
shared float staged[ROWS * SHARERS];
// The biased exponent of each row's largest activation.
shared uint exponents[ROWS];
// The largest of the weights that each subgroup decoded, of this turn and the next.
shared float largest[2][LANES / SUBGROUP];

// Four activations of a row from element `e` on, zeros behind its end.
vec4 four_of(uint at, uint e, bool aligned) {
    if (e + 4u <= k) {
        return aligned ? x4[(at + e) / 4u] : vec4(x[at + e], x[at + e + 1u], x[at + e + 2u], x[at + e + 3u]);
    }
    vec4 v = vec4(0.0);
    for (uint i = 0u; i < 3u; i++) {
        if (e + i < k) {
            v[i] = x[at + e + i];
        }
    }
    return v;
}

// The biased exponent of a number, so far inside that 2^14 over its power of two and the inverse of that are normal.
uint exponent_of(float most) { return clamp(floatBitsToUint(most) >> 23, 16u, 254u); }
float scale_of(uint exponent) { return uintBitsToFloat((268u - exponent) << 23); }
float inverse_of(uint exponent) { return uintBitsToFloat((exponent - 14u) << 23); }

// This lane's unit of weights from element `from` on, two of a row: zeros beyond the weights. Tells of the largest.
void take(uint first_feature, uint from, out vec4 w[4]) {
    uint f = gl_LocalInvocationID.x / 2u;
    uint unit = from / UNIT + gl_LocalInvocationID.x % 2u;
    w = vec4[](vec4(0.0), vec4(0.0), vec4(0.0), vec4(0.0));
    if (first_feature + f < features && UNIT * unit < k) {
        decode(base[1] + (first_feature + f) * row_words, k, unit, w);
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
    bool aligned = ((base[0] | k) & 3u) == 0u;

    for (uint r = lane / SHARERS; r < rows; r += LANES / SHARERS) {
        vec4 most = vec4(0.0);
        for (uint e = 4u * (lane % SHARERS); e < k; e += 4u * SHARERS) {
            most = max(most, abs(four_of(base[0] + (row + r) * k, e, aligned)));
        }
        staged[r * SHARERS + lane % SHARERS] = max(max(most.x, most.y), max(most.z, most.w));
    }
    barrier();
    for (uint r = lane; r < rows; r += LANES) {
        float most = 0.0;
        for (uint i = 0u; i < SHARERS; i++) {
            most = max(most, staged[r * SHARERS + i]);
        }
        exponents[r] = exponent_of(most);
    }
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
        uint to = lane / 2u * STRIDE + UNIT * (lane % 2u);
        for (uint i = 0u; i < 4u; i++) {
            for (uint j = 0u; j < 4u; j++) {
                tile_w[to + 4u * i + j] = float16_t(w[i][j] * scale_of(exponent));
            }
        }
        for (uint n = lane; n < ROWS * DEPTH / 4u; n += LANES) {
            uint r = n / (DEPTH / 4u);
            uint e = 4u * (n % (DEPTH / 4u));
            vec4 v = vec4(0.0);
            if (r < rows) {
                v = four_of(base[0] + (row + r) * k, from + e, aligned) * scale_of(exponents[r]);
            }
            for (uint j = 0u; j < 4u; j++) {
                tile_x[r * STRIDE + e + j] = float16_t(v[j]);
            }
        }
        barrier();
        // The next ones, while these are multiplied.
        take(first_feature, from + DEPTH, w);
        for (uint e = 0u; e < DEPTH; e += K) {
            coopmat<float16_t, gl_ScopeSubgroup, K, N, gl_MatrixUseB> b[WIDE];
            for (uint j = 0u; j < WIDE; j++) {
                coopMatLoad(b[j], tile_w, (across + N * j) * STRIDE + e, STRIDE, gl_CooperativeMatrixLayoutColumnMajor);
            }
            for (uint i = 0u; i < HIGH; i++) {
                if (down + M * i < rows) {
                    coopmat<float16_t, gl_ScopeSubgroup, M, K, gl_MatrixUseA> a;
                    coopMatLoad(a, tile_x, (down + M * i) * STRIDE + e, STRIDE, gl_CooperativeMatrixLayoutRowMajor);
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
                float y = staged[room + e] * inverse_of(exponent) * inverse_of(exponents[r]);
                if (has_bias != 0u) {
                    y += bias[base[2] + out_first + f];
                }
                result[base[3] + (row + r) * out_cols + out_first + f] = y;
            }
        }
        barrier();
    }
}
