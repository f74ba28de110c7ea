// How lanes share out products of few rows, and join their sums: the whole of matvec and matvec_integer but for what they
// multiply. These define, before they include this file, the types WeightUnit (a unit of a feature) and RowUnit (a unit
// of a row), weight_unit_of and row_unit_of, which bring them in, and add_product.

const uint FEATURES = 8u;
const uint ROWS = 4u;
// Features of a lane, and the lanes that share them out.
const uint EACH = 2u;
const uint SHARERS = LANES * EACH / FEATURES;

shared float sums[EACH * ROWS][LANES];

// Of those of a workgroup, the lane that this invocation is: in the order of subgroups, if they are of one size and full.
// Then lanes that follow one another are of one subgroup, or of whole ones; nothing else says which invocations are.
uint numbered() {
#ifdef SUBGROUP
    if (gl_NumSubgroups * gl_SubgroupSize == LANES) {
        return gl_SubgroupID * gl_SubgroupSize + gl_SubgroupInvocationID;
    }
#endif
    return gl_LocalInvocationID.x;
}

// Joins the sums of `rows` rows from `row` on, of this lane's features, the first of which is `feature`, and writes them.
void finish(float sum[EACH * ROWS], uint lane, uint row, uint rows, uint feature) {
    // Where the sums of this lane's features begin, and how many there are of each.
    uint sharer = lane % SHARERS;
    uint from = lane - sharer;
    uint count = 1u;
#ifdef SUBGROUP
    if (gl_NumSubgroups * gl_SubgroupSize == LANES) {
        // As many lanes share out two features as a subgroup has, or several subgroups have, or some of one.
        uint within = max(gl_SubgroupSize / SHARERS, 1u);
        count = max(SHARERS / gl_SubgroupSize, 1u);
        from = lane / SHARERS * count;
        for (uint i = 0u; i < EACH * ROWS; i++) {
            if (i % ROWS < rows) {
                for (uint t = 0u; t < within; t++) {
                    float all = subgroupAdd(lane / SHARERS % within == t ? sum[i] : 0.0);
                    if (subgroupElect()) {
                        sums[i][gl_SubgroupID * within + t] = all;
                    }
                }
            }
        }
        barrier();
    } else
#endif
    {
        for (uint i = 0u; i < EACH * ROWS; i++) {
            sums[i][lane] = sum[i];
        }
        barrier();
        for (uint sharers = SHARERS / 2u; sharers > 0u; sharers /= 2u) {
            if (sharer < sharers) {
                for (uint i = 0u; i < EACH * ROWS; i++) {
                    if (i % ROWS < rows) {
                        sums[i][lane] += sums[i][lane + sharers];
                    }
                }
            }
            barrier();
        }
    }
    // One sharer for each feature and row.
    uint r = sharer % ROWS;
    feature += sharer / ROWS;
    if (sharer < EACH * ROWS && r < rows && feature < features) {
        float y = 0.0;
        for (uint s = 0u; s < count; s++) {
            y += sums[sharer][from + s];
        }
        put(row + r, feature, y);
    }
}

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
                WeightUnit w[EACH];
                for (uint f = 0u; f < EACH; f++) {
                    w[f] = weight_unit_of(at[f], block, second);
                }
                for (uint r = 0u; r < ROWS; r++) {
                    if (r < rows) {
                        RowUnit v = row_unit_of(row + r, 2u * block + second);
                        for (uint f = 0u; f < EACH; f++) {
                            add_product(w[f], v, sum[f * ROWS + r]);
                        }
                    }
                }
            }
        }
    }
    finish(sum, lane, row, rows, feature);
}
