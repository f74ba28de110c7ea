//! Operations of image models against their definitions, in memory that is NaN before each step.

use std::sync::Arc;

use tenure_conformance::numbers::numbers;
use tenure_conformance::{NOTHING, Poisoned, bind, rows_of};
use tenure_cpu::simd::Isa;
use tenure_cpu::{Cpu, CpuOptions};
use tenure_device::{Backend, StepInputs};
use tenure_graph::{
    Beside, Buckets, Graph, Grid, InputId, OutputId, Plan, RelativeBias, Rows, StepShape, Val, WeightCatalog,
};
use tenure_tensor::{DType, Shape, TensorSpec, codec};

#[test]
fn modulation_takes_its_runs_of_columns_from_the_image_s_row() {
    for (images, every, cols, runs) in [(1, 1, 1, 2), (2, 5, 7, 9), (3, 66, 33, 6)] {
        for (shift, scale) in [(0, 1), (runs - 1, 0)] {
            let case = Case::default();
            let (x, by) = (case.given(images * every, cols, 1), case.given(images, runs * cols, 2));
            let want = each(images * every, cols, |row, col| {
                let by = |run: usize| at(&by, runs * cols, row / every, run * cols + col);
                at(&x, cols, row, col) * (1.0 + by(scale)) + by(shift)
            });
            case.agrees(&[&x, &by], &want, |g, vals| g.modulate(vals[0], vals[1], shift, scale, every));
            // The same where `x` is still wanted, so that it is not written over.
            let twice: Vec<f64> = want.iter().zip(&x.rows).map(|(want, &x)| want + f64::from(x)).collect();
            case.agrees(&[&x, &by], &twice, |g, vals| {
                g.add(g.modulate(vals[0], vals[1], shift, scale, every), vals[0])
            });
        }
    }
}

#[test]
fn gated_sums_take_their_gate_from_the_image_s_row() {
    for (images, every, cols, runs) in [(1, 1, 1, 1), (2, 5, 7, 6), (3, 66, 33, 2)] {
        for gate in [0, runs - 1] {
            let case = Case::default();
            let (x, y) = (case.given(images * every, cols, 1), case.given(images * every, cols, 2));
            let by = case.given(images, runs * cols, 3);
            let want = each(images * every, cols, |row, col| {
                at(&x, cols, row, col) + at(&by, runs * cols, row / every, gate * cols + col) * at(&y, cols, row, col)
            });
            case.agrees(&[&x, &y, &by], &want, |g, vals| g.add_gated(vals[0], vals[1], vals[2], gate, every));
            // A value added to itself.
            let want = each(images * every, cols, |row, col| {
                at(&x, cols, row, col) * (1.0 + at(&by, runs * cols, row / every, gate * cols + col))
            });
            case.agrees(&[&x, &by], &want, |g, vals| g.add_gated(vals[0], vals[0], vals[1], gate, every));
        }
    }
}

#[test]
fn places_are_those_in_the_middle_of_the_square() {
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        for (side, grid) in [
            (1, Grid { images: 1, height: 1, width: 1 }),
            (9, Grid { images: 2, height: 4, width: 7 }),
            (8, Grid { images: 1, height: 8, width: 3 }),
            (6, Grid { images: 3, height: 1, width: 6 }),
        ] {
            let cols = 5;
            for lead in [true, false] {
                let mut case = Case::default();
                let places = (side * side) as usize;
                let shape = if lead { Shape::from([1, places, cols]) } else { Shape::from([places, cols]) };
                let table = case.weight("places", dtype, shape);
                let x = case.given(grid.rows(), cols, 1);
                let (height, width) = (grid.height as usize, grid.width as usize);
                let want = each(grid.rows(), cols, |row, col| {
                    let (y, x_at) = (row % grid.pixels() / width, row % width);
                    let place = ((side as usize - height) / 2 + y) * side as usize + (side as usize - width) / 2 + x_at;
                    at(&x, cols, row, col) + f64::from(table[place * cols + col])
                });
                case.agrees(&[&x], &want, |g, vals| g.add_centre(vals[0], g.table("places", places, cols), side, grid));
            }
        }
    }
}

#[test]
fn patches_become_pixels() {
    for (grid, size, cols) in [
        (Grid { images: 1, height: 1, width: 1 }, 1, 3),
        (Grid { images: 2, height: 3, width: 5 }, 2, 4),
        (Grid { images: 3, height: 2, width: 1 }, 3, 1),
    ] {
        let case = Case::default();
        let wide = (size * size) as usize * cols;
        let x = case.given(grid.rows(), wide, 1);
        let mut want = vec![f64::NAN; grid.rows() * wide];
        let (height, width, size_at) = (grid.height as usize, grid.width as usize, size as usize);
        for image in 0..grid.images as usize {
            for (y, x_at) in (0..height).flat_map(|y| (0..width).map(move |x| (y, x))) {
                for (p, q) in (0..size_at).flat_map(|p| (0..size_at).map(move |q| (p, q))) {
                    for col in 0..cols {
                        let pixel = (image * height * size_at + y * size_at + p) * width * size_at + x_at * size_at + q;
                        let from = (image * height + y) * width + x_at;
                        want[pixel * cols + col] = at(&x, wide, from, (p * size_at + q) * cols + col);
                    }
                }
            }
        }
        case.agrees(&[&x], &want, |g, vals| g.unpatch(vals[0], grid, size));
    }
}

#[test]
fn products_of_many_rows_and_of_few_share_a_phase() {
    for (dtype, cols) in [(DType::F16, 33), (DType::F32, 20), (DType::Q8_0, 64), (DType::Q4_0, 256)] {
        let (rows, every, n, m) = (1200, 600, 37, 21);
        let mut case = Case::default();
        let mut x = case.given(rows, cols, 1);
        // Whole numbers of one size lose nothing where activations are quantised.
        x.rows.iter_mut().for_each(|x| *x = x.signum());
        let mut few = case.given(rows / every, cols, 2);
        few.rows.iter_mut().for_each(|x| *x = x.signum());
        let [a, b, c] =
            [("a", n), ("b", m), ("c", n)].map(|(name, n)| case.weight(name, dtype, Shape::from([n, cols])));
        let bias = case.weight("bias", DType::F32, Shape::from([n]));
        let product = |x: &Given, row: usize, w: &[f32], feature: usize| -> f64 {
            (0..cols).map(|col| at(x, cols, row, col) * f64::from(w[feature * cols + col])).sum()
        };
        let want = each(rows, n + m, |row, col| match col.checked_sub(n) {
            None => product(&x, row, &a, col) + f64::from(bias[col]) + product(&few, row / every, &c, col),
            Some(col) => product(&x, row, &b, col),
        });
        case.agrees(&[&x, &few], &want, |g, vals| {
            let of_few = g.matmul(vals[1], g.matrix("c", n, cols), None);
            let of_many = g.matmul(vals[0], g.matrix("a", n, cols), Some(g.vector("bias", n)));
            let others = g.matmul(vals[0], g.matrix("b", m, cols), None);
            g.concat(g.add_row(of_many, of_few, every), others)
        });
    }
}

#[test]
fn attention_sees_what_is_beside_in_the_same_sequence() {
    for (sequences, queries, keys, more) in [(1, 1, 1, 1), (2, 67, 66, 131), (3, 5, 130, 3)] {
        let (heads, head_dim) = (3, 7);
        let cols = heads * head_dim;
        let case = Case::default();
        let q = case.given(sequences * queries, cols, 1);
        let [k, v] = [2, 3].map(|seed| case.given(sequences * keys, cols, seed));
        let [k_more, v_more] = [4, 5].map(|seed| case.given(sequences * more, cols, seed));
        let joined = |of: &Given, beside: &Given, sequence: usize| -> Vec<f32> {
            let rows = |of: &Given, count: usize| of.rows[sequence * count * cols..][..count * cols].to_vec();
            [rows(of, keys), rows(beside, more)].concat()
        };
        let mut want = Vec::new();
        for sequence in 0..sequences {
            let (k, v) = (joined(&k, &k_more, sequence), joined(&v, &v_more, sequence));
            let q = &q.rows[sequence * queries * cols..][..queries * cols];
            want.extend(attention(q, &k, &v, heads, head_dim, 0.7, |_, _, _| 0.0));
        }
        case.agrees(&[&q, &k, &v, &k_more, &v_more], &want, |g, vals| {
            let beside = Some(Beside { k: vals[3], v: vals[4], keys: more });
            g.attend_with(vals[0], vals[1], vals[2], beside, heads, 0.7, queries, keys, false, None)
        });
    }
}

#[test]
fn attention_adds_what_the_distance_s_bucket_says() {
    for dtype in [DType::F32, DType::F16] {
        for (sequences, rows, count, max_distance) in [(1, 1, 32, 128), (2, 150, 32, 128), (1, 70, 8, 20), (2, 9, 4, 2)]
        {
            let (heads, head_dim) = (3, 6);
            let cols = heads * head_dim;
            let mut case = Case::default();
            let table = case.weight("bias", dtype, Shape::from([count, heads]));
            let [q, k, v] = [1, 2, 3].map(|seed| case.given(sequences * rows, cols, seed));
            let buckets = Buckets { count, max_distance };
            let mut want = Vec::new();
            for sequence in 0..sequences {
                let [q, k, v] = [&q, &k, &v].map(|of| &of.rows[sequence * rows * cols..][..rows * cols]);
                want.extend(attention(q, k, v, heads, head_dim, 1.0, |head, query, key| {
                    f64::from(table[buckets.of(query, key) * heads + head])
                }));
            }
            case.agrees(&[&q, &k, &v], &want, |g, vals| {
                let bias = RelativeBias { table: g.vectors("bias", count, heads), buckets };
                g.attend_with(vals[0], vals[1], vals[2], None, heads, 1.0, rows, rows, false, Some(bias))
            });
        }
    }
}

/// Rows that come with the step.
struct Given {
    rows: Vec<f32>,
    count: usize,
    cols: usize,
}

#[derive(Default)]
struct Case {
    weights: Vec<(TensorSpec, Vec<u8>)>,
}

/// Which inputs a case's values are.
const INPUTS: [InputId; 5] = [InputId::Sample, InputId::Timestep, InputId::Context, InputId::Pooled, InputId::Hidden];

impl Case {
    fn given(&self, count: usize, cols: usize, seed: u64) -> Given {
        Given { rows: numbers(&format!("given {seed}")).take(count * cols).collect(), count, cols }
    }

    /// A weight of the case's file, as it is stored.
    fn weight(&mut self, name: &str, dtype: DType, shape: Shape) -> Vec<f32> {
        let values: Vec<f32> = numbers(name).take(shape.elements().expect("small")).collect();
        let (mut bytes, mut stored) = (Vec::new(), vec![0.0; values.len()]);
        codec::quantize(dtype, &values, &mut bytes).expect("floats");
        codec::dequantize(dtype, &bytes, &mut stored).expect("just made");
        self.weights.push((TensorSpec { name: name.to_owned(), dtype, shape }, bytes));
        stored
    }

    /// The operation gives what is wanted, on each instruction set and with more and fewer threads than rows.
    fn agrees(&self, given: &[&Given], want: &[f64], body: impl Fn(&Graph<'_>, &[Val]) -> Val) {
        let g = Graph::new(self, StepShape { rows: 0, outs: 0, context: 0 });
        let input = |(x, id): (&&Given, InputId)| g.input(id, Rows::Fixed(x.count as u32), x.cols);
        let vals: Vec<Val> = given.iter().zip(INPUTS).map(input).collect();
        let out = body(&g, &vals);
        let plan: Arc<Plan> = Arc::new(g.finish(&[(OutputId::Sample, out)]).expect("a sound plan"));
        let given: Vec<(InputId, &[f32])> = given.iter().zip(INPUTS).map(|(x, id)| (id, &x.rows[..])).collect();
        let file = |spec: &TensorSpec| {
            let (_, bytes) = self.weights.iter().find(|(known, _)| known.name == spec.name).expect("of this file");
            bytes.clone()
        };
        for (isa, threads) in Isa::available().into_iter().flat_map(|isa| [(isa, 1), (isa, 3)]) {
            let options = CpuOptions { isa: Some(isa), threads: Some(threads), ..CpuOptions::default() };
            let cpu: Arc<dyn Backend> = Arc::new(Poisoned::new(Arc::new(Cpu::new(&options).expect("cpu"))));
            let mut program = bind(&cpu, &plan, &file);
            let got = rows_of(&mut program, &StepInputs { given: &given, ..NOTHING }, OutputId::Sample);
            assert_eq!(got.len(), want.len());
            for (i, (&got, &want)) in got.iter().zip(want).enumerate() {
                let error = (f64::from(got) - want).abs();
                assert!(
                    error <= 3e-6 * want.abs().max(1.0),
                    "{isa:?}, {threads}: element {i} is {got}, not {want}\n{plan}"
                );
            }
        }
    }
}

impl WeightCatalog for Case {
    fn find(&self, name: &str) -> Option<&TensorSpec> {
        self.weights.iter().map(|(spec, _)| spec).find(|spec| spec.name == name)
    }
}

fn at(of: &Given, cols: usize, row: usize, col: usize) -> f64 {
    f64::from(of.rows[row * cols + col])
}

fn each(rows: usize, cols: usize, of: impl Fn(usize, usize) -> f64) -> Vec<f64> {
    (0..rows * cols).map(|i| of(i / cols, i % cols)).collect()
}

/// Of each head the softmax of scaled products and what is added to them, over the values.
fn attention(
    q: &[f32],
    k: &[f32],
    v: &[f32],
    heads: usize,
    head_dim: usize,
    scale: f32,
    add: impl Fn(usize, usize, usize) -> f64,
) -> Vec<f64> {
    let cols = heads * head_dim;
    let (queries, keys) = (q.len() / cols, k.len() / cols);
    let mut out = vec![0.0; q.len()];
    for (query, head) in (0..queries).flat_map(|query| (0..heads).map(move |head| (query, head))) {
        let columns = head * head_dim..(head + 1) * head_dim;
        let score = |key: usize| -> f64 {
            let products = columns.clone().map(|col| f64::from(q[query * cols + col]) * f64::from(k[key * cols + col]));
            products.sum::<f64>() * f64::from(scale) + add(head, query, key)
        };
        let powers: Vec<f64> = (0..keys).map(|key| score(key).exp()).collect();
        let sum: f64 = powers.iter().sum();
        for col in columns.clone() {
            let weighted = powers.iter().enumerate().map(|(key, power)| power * f64::from(v[key * cols + col]));
            out[query * cols + col] = weighted.sum::<f64>() / sum;
        }
    }
    out
}
