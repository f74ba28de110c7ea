// Rows of activations in f16, scaled by a power of two that brings the largest of a row to 2^14 or above: what
// rows_to_f16 leaves for the products by cooperative matrices.

// Words before a row's elements, of which the first is what they are to be multiplied by.
const uint HEADER = 4u;
// Words of a row, whose elements are followed by zeros up to a multiple of eight.
uint f16_row_words(uint k) { return HEADER + (k + 7u) / 8u * 4u; }
