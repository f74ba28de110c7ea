// Rows of activations as integers of 16 bits, a unit of 16 elements at a time: what rows_to_i16 leaves for the products
// by integer dot products. Each unit has a scale of its own.

// Words of a unit: 16 high bytes, 16 low bytes, the scale, and the sum of the integers; the last two are not used.
const uint UNIT_WORDS = 12u;

#ifdef WEIGHT_BINDING
// The product of a unit of weights, the numbers of which are `w`, and a unit of a row.
float scaled(ivec4 w, float scale, float offset, ivec4 high, ivec4 low, uvec2 rest) {
    int of_high = 0;
    int of_low = 0;
    for (uint i = 0u; i < 4u; i++) {
        of_high += dotPacked4x8EXT(w[i], high[i]);
        of_low += dotPacked4x8EXT(w[i], low[i]);
    }
    int sum = int(rest.y);
    float product = float((of_high << 8) + of_low - zero_number() * sum);
    float by = uintBitsToFloat(rest.x);
    if (FORMAT == MXFP4) {
        // Its scales are powers of two as large as there are.
        return scale * by * product;
    }
    return by * (has_offset() ? scale * product + offset * float(sum) : scale * product);
}
#endif
