// The products of matmul for weights of block types, by integer dot products (SPV_KHR_integer_dot_product): a workgroup
// computes 64 features of 64 rows, two units of both at a time in shared memory, and each lane four features of eight
// rows. The rows are those of rows_to_i16.
#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_integer_dot_product : require
#extension GL_EXT_shader_16bit_storage : require
#extension GL_EXT_shader_8bit_storage : require

#define SMALL_STORAGE
#define PUSH uint k; uint row_words; uint features; uint out_cols; uint out_first; uint has_bias;
#include "common.glsl"
#define WEIGHT_BINDING 1
#include "quant.glsl"
#include "i16_rows.glsl"
#include "result.glsl"

layout(set = 1, binding = 0, std430) readonly buffer X { uvec4 x4[]; };

const uint FEATURES = 64u;
const uint ROWS = 64u;
// Units taken at a time.
const uint DEPTH = 2u;
// Fours of words of a row of the tiles; one more keeps rows in different banks.
const uint STRIDE_W = DEPTH + 1u;
const uint STRIDE_X = 2u * DEPTH + 1u;
// Lanes side by side, and features of each; lanes below one another, and rows of each.
const uint ACROSS = 16u;
const uint WIDE = FEATURES / ACROSS;
const uint DOWN = 8u;
const uint HIGH = ROWS / DOWN;

shared ivec4 tile_w[FEATURES * STRIDE_W];
shared vec2 scales_w[FEATURES * DEPTH];
shared ivec4 tile_x[ROWS * STRIDE_X];
shared uvec2 rest_x[ROWS * DEPTH];

void main() {
    uint lane = gl_LocalInvocationID.x;
    uint first_feature = gl_WorkGroupID.x * FEATURES;
    uint row = gl_WorkGroupID.y * ROWS;
    uint rows = row_count();
    if (row >= rows) {
        return;
    }
    rows = min(rows - row, ROWS);
    uint units = k / UNIT;

    float sum[HIGH][WIDE];
    for (uint j = 0u; j < HIGH; j++) {
        for (uint i = 0u; i < WIDE; i++) {
            sum[j][i] = 0.0;
        }
    }
    uint across = lane % ACROSS;
    uint down = lane / ACROSS;
    for (uint from = 0u; from < units; from += DEPTH) {
        // A unit of weights and one of a row for each lane. Blocks have an even number of units.
        uint u = lane % DEPTH;
        uint at = lane / DEPTH;
        uvec4 codes = uvec4(0u);
        float scale = 0.0;
        float offset = 0.0;
        if (first_feature + at < features) {
            codes_of(base[1] + (first_feature + at) * row_words, k, from / 2u, u, codes, scale, offset);
        }
        ivec4 w;
        for (uint i = 0u; i < 4u; i++) {
            w[i] = packed_numbers_of(codes[i]);
        }
        tile_w[at * STRIDE_W + u] = w;
        scales_w[at * DEPTH + u] = vec2(scale, offset);
        uvec4 high = uvec4(0u);
        uvec4 low = uvec4(0u);
        uvec2 rest = uvec2(0u);
        if (at < rows) {
            uint x_at = (base[0] + ((row + at) * units + from + u) * UNIT_WORDS) / 4u;
            high = x4[x_at];
            low = x4[x_at + 1u];
            rest = x4[x_at + 2u].xy;
        }
        tile_x[at * STRIDE_X + 2u * u] = ivec4(high);
        tile_x[at * STRIDE_X + 2u * u + 1u] = ivec4(low);
        rest_x[at * DEPTH + u] = rest;
        barrier();
        for (uint d = 0u; d < DEPTH; d++) {
            ivec4 numbers[WIDE];
            vec2 by[WIDE];
            for (uint i = 0u; i < WIDE; i++) {
                numbers[i] = tile_w[(across + ACROSS * i) * STRIDE_W + d];
                by[i] = scales_w[(across + ACROSS * i) * DEPTH + d];
            }
            for (uint j = 0u; j < HIGH; j++) {
                uint r = down + DOWN * j;
                ivec4 upper = tile_x[r * STRIDE_X + 2u * d];
                ivec4 lower = tile_x[r * STRIDE_X + 2u * d + 1u];
                uvec2 other = rest_x[r * DEPTH + d];
                for (uint i = 0u; i < WIDE; i++) {
                    sum[j][i] += scaled(numbers[i], by[i].x, by[i].y, upper, lower, other);
                }
            }
        }
        barrier();
    }
    for (uint j = 0u; j < HIGH; j++) {
        uint r = down + DOWN * j;
        for (uint i = 0u; i < WIDE; i++) {
            uint f = first_feature + across + ACROSS * i;
            if (r < rows && f < features) {
                put(row + r, f, sum[j][i]);
            }
        }
    }
}
