// x w^T (+ bias) for many rows: a workgroup computes 64 features of 32 rows, 32 elements of both at a time in shared
// memory, and each lane four features of four rows.
#version 450
#extension GL_GOOGLE_include_directive : require

#define PUSH uint k; uint row_words; uint features; uint out_cols; uint out_first; uint has_bias;
#include "common.glsl"
#define WEIGHT_BINDING 1
#include "quant.glsl"
#include "rows.glsl"
#include "result.glsl"

const uint FEATURES = 64u;
const uint ROWS = 32u;
// Elements of a row taken at a time, in fours; one four more keeps rows in different banks.
const uint DEPTH = BLOCK;
const uint STRIDE = DEPTH / 4u + 1u;
// Lanes side by side, and features or rows of each.
const uint ACROSS = 16u;
const uint DOWN = 8u;
const uint EACH = 4u;

shared vec4 tile_w[FEATURES * STRIDE];
shared vec4 tile_x[ROWS * STRIDE];

void main() {
    uint lane = gl_LocalInvocationID.x;
    uint first_feature = gl_WorkGroupID.x * FEATURES;
    uint row = gl_WorkGroupID.y * ROWS;
    uint rows = row_count();
    if (row >= rows) {
        return;
    }
    rows = min(rows - row, ROWS);
    bool aligned = is_aligned(k);

    float sum[EACH][EACH];
    for (uint j = 0u; j < EACH; j++) {
        for (uint i = 0u; i < EACH; i++) {
            sum[j][i] = 0.0;
        }
    }
    uint across = lane % ACROSS;
    uint down = lane / ACROSS;
    for (uint from = 0u; from < k; from += DEPTH) {
        // One unit of weights for each lane: two of a row.
        {
            uint f = lane / 2u;
            uint unit = from / UNIT + lane % 2u;
            vec4 w[4] = vec4[](vec4(0.0), vec4(0.0), vec4(0.0), vec4(0.0));
            if (first_feature + f < features && UNIT * unit < k) {
                decode(base[1] + (first_feature + f) * row_words, k, from / BLOCK, lane % 2u, w);
            }
            for (uint i = 0u; i < 4u; i++) {
                tile_w[f * STRIDE + 4u * (lane % 2u) + i] = w[i];
            }
        }
        // Two fours of activations for each lane.
        for (uint n = lane; n < ROWS * DEPTH / 4u; n += LANES) {
            uint r = n / (DEPTH / 4u);
            uint four = n % (DEPTH / 4u);
            uint at = base[0] + (row + r) * k;
            vec4 v = r < rows ? four_within(at, from + 4u * four, k, aligned) : vec4(0.0);
            tile_x[r * STRIDE + four] = v;
        }
        barrier();
        for (uint four = 0u; four < DEPTH / 4u; four++) {
            vec4 w[EACH];
            for (uint i = 0u; i < EACH; i++) {
                w[i] = tile_w[(across + ACROSS * i) * STRIDE + four];
            }
            for (uint j = 0u; j < EACH; j++) {
                vec4 v = tile_x[(down + DOWN * j) * STRIDE + four];
                for (uint i = 0u; i < EACH; i++) {
                    sum[j][i] += dot(w[i], v);
                }
            }
        }
        barrier();
    }
    for (uint j = 0u; j < EACH; j++) {
        uint r = down + DOWN * j;
        for (uint i = 0u; i < EACH; i++) {
            uint f = first_feature + across + ACROSS * i;
            if (r < rows && f < features) {
                put(row + r, f, sum[j][i]);
            }
        }
    }
}
