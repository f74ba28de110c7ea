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

// Of those of a workgroup, the lane that this invocation is: in the order of subgroups, if they are of one size and full.
// Then lanes that follow one another are of one subgroup, or of whole ones; nothing else says which invocations are.
uint numbered() {
#ifdef SUBGROUP
    if (gl_NumSubgroups * gl_SubgroupSize == LANES) {
        return gl_SubgroupID * gl_SubgroupSize + gl_SubgroupInvocationID;
    }
#endif
    return gl_LocalInvocationID.x;
}

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
    // Where the sums of this lane's features begin, and how many there are of each.
    uint from = lane - sharer;
    uint count = 1u;
#ifdef SUBGROUP
    if (gl_NumSubgroups * gl_SubgroupSize == LANES) {
        // As many lanes share out two features as a subgroup has, or several subgroups have, or some of one.
        uint within = max(gl_SubgroupSize / SHARERS, 1u);
        count = max(SHARERS / gl_SubgroupSize, 1u);
        from = lane / SHARERS * count;
        for (uint i = 0u; i < EACH * ROWS; i++) {
            if (i % ROWS < rows) {
                for (uint t = 0u; t < within; t++) {
                    float all = subgroupAdd(lane / SHARERS % within == t ? sum[i] : 0.0);
                    if (subgroupElect()) {
                        sums[i][gl_SubgroupID * within + t] = all;
                    }
                }
            }
        }
        barrier();
    } else
#endif
    {
        for (uint i = 0u; i < EACH * ROWS; i++) {
            sums[i][lane] = sum[i];
        }
        barrier();
        for (uint sharers = SHARERS / 2u; sharers > 0u; sharers /= 2u) {
            if (sharer < sharers) {
                for (uint i = 0u; i < EACH * ROWS; i++) {
                    if (i % ROWS < rows) {
                        sums[i][lane] += sums[i][lane + sharers];
                    }
                }
            }
            barrier();
        }
    }
    // One sharer for each feature and row.
    uint r = sharer % ROWS;
    feature += sharer / ROWS;
    if (sharer < EACH * ROWS && r < rows && feature < features) {
        float y = 0.0;
        for (uint s = 0u; s < count; s++) {
            y += sums[sharer][from + s];
        }
        if (has_bias != 0u) {
            y += bias[base[2] + out_first + feature];
        }
        result[base[3] + (row + r) * out_cols + out_first + feature] = y;
    }
}
