// x w^T (+ bias) for few rows: a workgroup computes 8 features of up to 4 rows, 16 lanes share a feature's row of weights,
// which is read once for all of them.
#version 450
#extension GL_GOOGLE_include_directive : require

#define PUSH uint k; uint row_words; uint features; uint out_cols; uint out_first; uint has_bias;
#include "common.glsl"
#define WEIGHT_BINDING 1
#include "quant.glsl"

layout(set = 1, binding = 0, std430) readonly buffer X { float x[]; };
layout(set = 1, binding = 0, std430) readonly buffer XByFour { vec4 x4[]; };
layout(set = 1, binding = 2, std430) readonly buffer Bias { float bias[]; };
layout(set = 1, binding = 3, std430) writeonly buffer Out { float result[]; };

// Four activations from word `at` on.
vec4 four_of(uint at, bool aligned) {
    return aligned ? x4[at / 4u] : vec4(x[at], x[at + 1u], x[at + 2u], x[at + 3u]);
}

const uint FEATURES = 8u;
const uint ROWS = 4u;
const uint SHARERS = LANES / FEATURES;

shared float sums[ROWS][LANES];

void main() {
    uint lane = gl_LocalInvocationID.x;
    uint sharer = lane % SHARERS;
    uint feature = gl_WorkGroupID.x * FEATURES + lane / SHARERS;
    uint row = gl_WorkGroupID.y * ROWS;
    uint rows = row_count();
    if (row >= rows) {
        return;
    }
    rows = min(rows - row, ROWS);
    bool aligned = ((base[0] | k) & 3u) == 0u;

    float sum[ROWS];
    for (uint r = 0u; r < ROWS; r++) {
        sum[r] = 0.0;
    }
    if (feature < features) {
        uint at = base[1] + feature * row_words;
        for (uint unit = sharer; UNIT * unit < k; unit += SHARERS) {
            vec4 w[4];
            decode(at, k, unit, w);
            for (uint r = 0u; r < ROWS; r++) {
                if (r < rows) {
                    uint from = base[0] + (row + r) * k + UNIT * unit;
                    if (is_plain() && UNIT * unit + UNIT > k) {
                        // What follows a row is not this row's, and may be NaN.
                        for (uint i = 0u; i < UNIT; i++) {
                            if (UNIT * unit + i < k) {
                                sum[r] += w[i / 4u][i % 4u] * x[from + i];
                            }
                        }
                    } else {
                        for (uint i = 0u; i < 4u; i++) {
                            sum[r] += dot(w[i], four_of(from + 4u * i, aligned));
                        }
                    }
                }
            }
        }
    }
    for (uint r = 0u; r < ROWS; r++) {
        sums[r][lane] = sum[r];
    }
    barrier();
    for (uint half_sharers = SHARERS / 2u; half_sharers > 0u; half_sharers /= 2u) {
        if (sharer < half_sharers) {
            for (uint r = 0u; r < ROWS; r++) {
                sums[r][lane] += sums[r][lane + half_sharers];
            }
        }
        barrier();
    }
    // One sharer for each row.
    if (feature < features && sharer < rows) {
        float y = sums[sharer][lane - sharer];
        if (has_bias != 0u) {
            y += bias[base[2] + out_first + feature];
        }
        result[base[3] + (row + sharer) * out_cols + out_first + feature] = y;
    }
}
