// x w^T (+ bias) for few rows: a workgroup computes 8 features of up to 4 rows. 32 lanes share out the weights of two
// features, each of which is read once for all rows, as each activation is for both features.
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
// Features of a lane, and the lanes that share them out.
const uint EACH = 2u;
const uint SHARERS = LANES * EACH / FEATURES;

shared float sums[EACH * ROWS][LANES];

void main() {
    uint lane = gl_LocalInvocationID.x;
    uint sharer = lane % SHARERS;
    uint feature = gl_WorkGroupID.x * FEATURES + lane / SHARERS * EACH;
    uint row = gl_WorkGroupID.y * ROWS;
    uint rows = row_count();
    if (row >= rows) {
        return;
    }
    rows = min(rows - row, ROWS);
    bool aligned = ((base[0] | k) & 3u) == 0u;

    float sum[EACH * ROWS];
    for (uint i = 0u; i < EACH * ROWS; i++) {
        sum[i] = 0.0;
    }
    if (feature < features) {
        for (uint unit = sharer; UNIT * unit < k; unit += SHARERS) {
            vec4 w[EACH][4];
            for (uint f = 0u; f < EACH; f++) {
                // Past the last feature, the last again: its sum is not kept.
                decode(base[1] + min(feature + f, features - 1u) * row_words, k, unit, w[f]);
            }
            for (uint r = 0u; r < ROWS; r++) {
                if (r < rows) {
                    uint from = base[0] + (row + r) * k + UNIT * unit;
                    if (is_plain() && UNIT * unit + UNIT > k) {
                        // What follows a row is not this row's, and may be NaN.
                        for (uint i = 0u; i < UNIT; i++) {
                            if (UNIT * unit + i < k) {
                                for (uint f = 0u; f < EACH; f++) {
                                    sum[f * ROWS + r] += w[f][i / 4u][i % 4u] * x[from + i];
                                }
                            }
                        }
                    } else {
                        for (uint i = 0u; i < 4u; i++) {
                            vec4 v = four_of(from + 4u * i, aligned);
                            for (uint f = 0u; f < EACH; f++) {
                                sum[f * ROWS + r] += dot(w[f][i], v);
                            }
                        }
                    }
                }
            }
        }
    }
    for (uint i = 0u; i < EACH * ROWS; i++) {
        sums[i][lane] = sum[i];
    }
    barrier();
    for (uint sharers = SHARERS / 2u; sharers > 0u; sharers /= 2u) {
        if (sharer < sharers) {
            for (uint i = 0u; i < EACH * ROWS; i++) {
                sums[i][lane] += sums[i][lane + sharers];
            }
        }
        barrier();
    }
    // One sharer for each feature and row.
    uint r = sharer % ROWS;
    feature += sharer / ROWS;
    if (sharer < EACH * ROWS && r < rows && feature < features) {
        float y = sums[sharer][lane - sharer];
        if (has_bias != 0u) {
            y += bias[base[2] + out_first + feature];
        }
        result[base[3] + (row + r) * out_cols + out_first + feature] = y;
    }
}
