// Rows of the table named by the step's tokens, times a factor.
#version 450
#extension GL_GOOGLE_include_directive : require

#define STEP_WORDS
#define PUSH uint cols; uint row_words; uint table_first; uint table_rows; float scale;
#include "common.glsl"
#define WEIGHT_BINDING 0
#include "quant.glsl"

layout(set = 1, binding = 1, std430) writeonly buffer Out { float result[]; };

void main() {
    uint row = gl_WorkGroupID.y;
    uint unit = gl_WorkGroupID.x * (COLUMNS / UNIT) + gl_LocalInvocationID.x;
    if (row >= row_count() || gl_LocalInvocationID.x >= COLUMNS / UNIT || UNIT * unit >= cols) {
        return;
    }
    uint token = step_token(first_row + row);
    if (token < table_first || token - table_first >= table_rows) {
        return;
    }
    vec4 v[4];
    decode(base[0] + (token - table_first) * row_words, cols, unit / 2u, unit % 2u, v);
    uint to = base[1] + row * cols + UNIT * unit;
    for (uint i = 0u; i < UNIT; i++) {
        if (UNIT * unit + i < cols) {
            result[to + i] = v[i / 4u][i % 4u] * scale;
        }
    }
}
