// Joins the parts of each row's positions that attention computed. A workgroup joins one query head of one row.
#version 450
#extension GL_GOOGLE_include_directive : require

#define STEP_WORDS
#define PUSH uint heads; uint first_column; uint columns; uint window; uint most_parts;
#include "common.glsl"

layout(constant_id = 1) const uint HEAD_DIM = 64u;

layout(set = 1, binding = 0, std430) readonly buffer Parts { float parts[]; };
layout(set = 1, binding = 1, std430) writeonly buffer Out { float result[]; };

#include "softmax.glsl"

shared float keeps[LANES];

void main() {
    uint row = gl_WorkGroupID.y;
    uint lane = gl_LocalInvocationID.x;
    if (row >= row_count()) {
        return;
    }
    uint column = gl_WorkGroupID.x;
    uint end = step_position(first_row + row) + 1u;
    uint units = units_of(first_attended(end - 1u), end);
    uint each = units_of_part(units);
    uint count = (units + each - 1u) / each;
    uint from = base[0] + part_at(column, row, columns, 0u);
    uint stride = HEAD_DIM + 2u;

    float largest = NEGATIVE_INFINITY;
    for (uint p = 0u; p < count; p++) {
        largest = max(largest, parts[from + p * stride + HEAD_DIM]);
    }
    if (lane < count) {
        keeps[lane] = kept(parts[from + lane * stride + HEAD_DIM], largest);
    }
    barrier();
    float total = 0.0;
    for (uint p = 0u; p < count; p++) {
        total += keeps[p] * parts[from + p * stride + HEAD_DIM + 1u];
    }
    float factor = total == 0.0 ? 0.0 : 1.0 / total;
    for (uint d = lane; d < HEAD_DIM; d += LANES) {
        float sum = 0.0;
        for (uint p = 0u; p < count; p++) {
            sum += keeps[p] * parts[from + p * stride + d];
        }
        result[base[1] + (row * heads + first_column + column) * HEAD_DIM + d] = sum * factor;
    }
}
