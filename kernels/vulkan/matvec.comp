// x w^T (+ bias) for few rows: a workgroup computes 8 features of up to 4 rows. 32 lanes share out the weights of two
// features, each of which is read once for all rows, as each activation is for both features.
#version 450
#pragma variants(SUBGROUP)
#extension GL_GOOGLE_include_directive : require
#ifdef SUBGROUP
#extension GL_KHR_shader_subgroup_arithmetic : require
#endif

#define PUSH uint k; uint row_words; uint features; uint out_cols; uint out_first; uint has_bias;
#include "common.glsl"
#define WEIGHT_BINDING 1
#include "quant.glsl"
#include "rows.glsl"
#include "lanes.glsl"

void main() {
    uint lane = numbered();
    uint sharer = lane % SHARERS;
    uint feature = gl_WorkGroupID.x * FEATURES + lane / SHARERS * EACH;
    uint row = gl_WorkGroupID.y * ROWS;
    uint rows = row_count();
    if (row >= rows) {
        return;
    }
    rows = min(rows - row, ROWS);
    bool aligned = is_aligned(k);

    float sum[EACH * ROWS];
    for (uint i = 0u; i < EACH * ROWS; i++) {
        sum[i] = 0.0;
    }
    if (feature < features) {
        uint at[EACH];
        for (uint f = 0u; f < EACH; f++) {
            // Past the last feature, the last again: its sum is not kept.
            at[f] = base[1] + min(feature + f, features - 1u) * row_words;
        }
        for (uint block = sharer; BLOCK * block < k; block += SHARERS) {
            for (uint second = 0u; second < 2u; second++) {
                vec4 w[EACH][4];
                for (uint f = 0u; f < EACH; f++) {
                    decode(at[f], k, block, second, w[f]);
                }
                uint e = BLOCK * block + UNIT * second;
                for (uint r = 0u; r < ROWS; r++) {
                    if (r < rows) {
                        uint from = base[0] + (row + r) * k;
                        vec4 v[4];
                        // Blocks are whole.
                        if (is_plain() && e + UNIT > k) {
                            for (uint i = 0u; i < 4u; i++) {
                                v[i] = four_within(from, e + 4u * i, k, aligned);
                            }
                        } else {
                            for (uint i = 0u; i < 4u; i++) {
                                v[i] = four_of(from + e + 4u * i, aligned);
                            }
                        }
                        for (uint f = 0u; f < EACH; f++) {
                            for (uint i = 0u; i < 4u; i++) {
                                sum[f * ROWS + r] += dot(w[f][i], v[i]);
                            }
                        }
                    }
                }
            }
        }
    }
    finish(sum, lane, row, rows, feature);
}
