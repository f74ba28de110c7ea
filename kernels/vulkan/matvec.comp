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
#include "result.glsl"

struct WeightUnit { vec4 w[4]; };
struct RowUnit { vec4 v[4]; };

WeightUnit weight_unit_of(uint at, uint block, uint second) {
    WeightUnit weights;
    decode(at, k, block, second, weights.w);
    return weights;
}

RowUnit row_unit_of(uint row, uint unit) {
    bool aligned = is_aligned(k);
    uint from = base[0] + row * k;
    uint e = UNIT * unit;
    RowUnit activations;
    // Blocks are whole.
    if (is_plain() && e + UNIT > k) {
        for (uint i = 0u; i < 4u; i++) {
            activations.v[i] = four_within(from, e + 4u * i, k, aligned);
        }
    } else {
        for (uint i = 0u; i < 4u; i++) {
            activations.v[i] = four_of(from + e + 4u * i, aligned);
        }
    }
    return activations;
}

void add_product(WeightUnit weights, RowUnit activations, inout float sum) {
    for (uint i = 0u; i < 4u; i++) {
        sum += dot(weights.w[i], activations.v[i]);
    }
}

#include "lanes.glsl"
