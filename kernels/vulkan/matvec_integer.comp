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
#include "lanes.glsl"

layout(set = 1, binding = 0, std430) readonly buffer X { uvec4 x4[]; };

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
                ivec4 w[EACH];
                float scale[EACH];
                float offset[EACH];
                for (uint f = 0u; f < EACH; f++) {
                    uvec4 codes;
                    codes_of(at[f], k, block, second, codes, scale[f], offset[f]);
                    for (uint i = 0u; i < 4u; i++) {
                        w[f][i] = packed_numbers_of(codes[i]);
                    }
                }
                for (uint r = 0u; r < ROWS; r++) {
                    if (r < rows) {
                        uint unit = (row + r) * (k / UNIT) + 2u * block + second;
                        uint from = (base[0] + unit * UNIT_WORDS) / 4u;
                        ivec4 high = ivec4(x4[from]);
                        ivec4 low = ivec4(x4[from + 1u]);
                        uvec2 rest = x4[from + 2u].xy;
                        for (uint f = 0u; f < EACH; f++) {
                            sum[f * ROWS + r] += scaled(w[f], scale[f], offset[f], high, low, rest);
                        }
                    }
                }
            }
        }
    }
    finish(sum, lane, row, rows, feature);
}
