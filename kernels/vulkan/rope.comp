// Rotary position embedding: each pair of elements turns by its own fraction of a turn for every position.
//
// The fraction is a whole number of 2^-64 turns, so the phase is exact for any position; sines and cosines are computed
// here, for what a driver's are worth at large arguments is its choice.
#version 450
#extension GL_GOOGLE_include_directive : require

#define STEP_WORDS
#define PUSH uint cols; uint head_dim; uint dims; float magnitude;
#include "common.glsl"

layout(set = 1, binding = 0, std430) readonly buffer X { float x[]; };
layout(set = 1, binding = 1, std430) readonly buffer Turns { uint turns[]; };
layout(set = 1, binding = 2, std430) writeonly buffer Out { float result[]; };

#define ADJACENT 0u
#define HALVES 1u

// Cosine and sine of `phase` 2^-32 turns.
vec2 turned(uint phase) {
    // The nearest quarter of a turn, and what is left: an eighth of a turn at most, either way.
    uint quarter = (phase + 0x20000000u) >> 30;
    float a = float(int(phase - (quarter << 30))) * 1.4629180792671596e-9; // 2 pi / 2^32
    float s = a * a;
    float sine = a + a * s * (-1.6666667e-1 + s * (8.3333333e-3 + s * (-1.9841270e-4 + s * 2.7557319e-6)));
    float cosine = 1.0 + s * (-0.5 + s * (4.1666667e-2 + s * (-1.3888889e-3 + s * (2.4801587e-5 - s * 2.7557319e-7))));
    vec2 both = (quarter & 1u) == 0u ? vec2(cosine, sine) : vec2(-sine, cosine);
    return (quarter & 2u) == 0u ? both : -both;
}

void main() {
    uint row = gl_WorkGroupID.y;
    uint c = gl_WorkGroupID.x * LANES + gl_LocalInvocationID.x;
    if (row >= row_count() || c >= cols) {
        return;
    }
    uint at = row * cols + c;
    uint e = c % head_dim;
    if (e >= dims) {
        result[base[2] + at] = x[base[0] + at];
        return;
    }
    uint pair = FORMAT == ADJACENT ? e / 2u : e;
    uint apart = FORMAT == ADJACENT ? 1u : dims / 2u;
    // The invocation of a pair's first element does both.
    if (FORMAT == ADJACENT ? (e & 1u) != 0u : e >= dims / 2u) {
        return;
    }
    uint position = step_position(first_row + row);
    uint carried, rest;
    umulExtended(turns[base[1] + 2u * pair + 1u], position, carried, rest);
    vec2 t = turned(turns[base[1] + 2u * pair] * position + carried) * magnitude;
    float x0 = x[base[0] + at];
    float x1 = x[base[0] + at + apart];
    result[base[2] + at] = x0 * t.x - x1 * t.y;
    result[base[2] + at + apart] = x0 * t.y + x1 * t.x;
}
