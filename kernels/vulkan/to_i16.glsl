// Leaves elements of a row as i16_rows.glsl says, in the buffer at I16_BINDING, which a kernel defines before it includes
// this file: COLUMNS of them at a time, four a lane, so that four lanes share a unit.

layout(set = 1, binding = I16_BINDING, std430) writeonly buffer I16Rows { uint i16_words[]; };

// The largest integer: 127 in the high byte, and in the low one, which is signed too.
const float LARGEST = 32639.0;
const uint UNIT_COLUMNS = 16u;

// The elements, which whoever calls writes down.
shared float elements[COLUMNS];
shared uint most_of[LANES];
shared int sum_of[LANES];

// The first word of the unit of column `c` of a row of `cols` columns.
uint i16_word(uint row, uint cols, uint c) { return (row * cols + c) / UNIT_COLUMNS * UNIT_WORDS; }

// Writes the units of the first `count` elements, from word `to` on. All lanes call it.
void leave_i16(uint to, uint count) {
    barrier();
    uint lane = gl_LocalInvocationID.x;
    bool inside = 4u * lane < count;
    float v[4];
    // By their bits, infinity and NaN are the largest.
    uint most = 0u;
    for (uint i = 0u; i < 4u; i++) {
        v[i] = inside ? elements[4u * lane + i] : 0.0;
        most = max(most, floatBitsToUint(v[i]) & 0x7fffffffu);
    }
    most_of[lane] = most;
    barrier();
    for (uint i = 0u; i < 4u; i++) {
        most = max(most, most_of[lane / 4u * 4u + i]);
    }
    // The largest goes to between half of LARGEST and LARGEST; of those below 2^-111 less is left.
    uint exponent = exponent_of(uintBitsToFloat(most));
    float factor = scale_of(exponent) * (LARGEST / 32768.0);
    float scale = inverse_of(exponent) * (32768.0 / LARGEST);
    // What is not finite makes zeros of a scale that is NaN: so is whatever they are multiplied by.
    bool finite = most < 0x7f800000u;
    uint high = 0u;
    uint low = 0u;
    int sum = 0;
    for (uint i = 0u; i < 4u; i++) {
        int whole = finite ? int(roundEven(v[i] * factor)) : 0;
        sum += whole;
        high |= (uint((whole + 128) >> 8) & 0xffu) << (8u * i);
        low |= (uint(whole) & 0xffu) << (8u * i);
    }
    sum_of[lane] = sum;
    uint at = to + lane / 4u * UNIT_WORDS;
    if (inside) {
        i16_words[at + lane % 4u] = high;
        i16_words[at + 4u + lane % 4u] = low;
    }
    barrier();
    if (inside && lane % 4u == 0u) {
        i16_words[at + 8u] = finite ? floatBitsToUint(scale) : 0x7fc00000u;
        i16_words[at + 9u] = uint(sum_of[lane] + sum_of[lane + 1u] + sum_of[lane + 2u] + sum_of[lane + 3u]);
    }
}
