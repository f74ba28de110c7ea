// The products of matvec for weights of block types, by integer dot products (SPV_KHR_integer_dot_product): the numbers
// of a unit's codes by the integers of rows_to_i16, which is exact, then the scales.
#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_integer_dot_product : require
#extension GL_EXT_shader_16bit_storage : require
#extension GL_EXT_shader_8bit_storage : require
#extension GL_KHR_shader_subgroup_arithmetic : require

#define SUBGROUP
#define SMALL_STORAGE
#define PUSH uint k; uint row_words; uint features; uint out_cols; uint out_first; uint has_bias;
#include "common.glsl"
#define WEIGHT_BINDING 1
#include "quant.glsl"
#include "i16_rows.glsl"
#include "result.glsl"

layout(set = 1, binding = 0, std430) readonly buffer X { uvec4 x4[]; };

struct WeightUnit {
    ivec4 numbers;
    float scale;
    float offset;
};

struct RowUnit {
    ivec4 high;
    ivec4 low;
    uvec2 rest;
};

WeightUnit weight_unit_of(uint at, uint block, uint second) {
    WeightUnit weights;
    uvec4 codes;
    codes_of(at, k, block, second, codes, weights.scale, weights.offset);
    for (uint i = 0u; i < 4u; i++) {
        weights.numbers[i] = packed_numbers_of(codes[i]);
    }
    return weights;
}

RowUnit row_unit_of(uint row, uint unit) {
    uint from = (base[0] + (row * (k / UNIT) + unit) * UNIT_WORDS) / 4u;
    return RowUnit(ivec4(x4[from]), ivec4(x4[from + 1u]), x4[from + 2u].xy);
}

void add_product(WeightUnit w, RowUnit v, inout float sum) {
    sum += scaled(w.numbers, w.scale, w.offset, v.high, v.low, v.rest);
}

#include "lanes.glsl"
