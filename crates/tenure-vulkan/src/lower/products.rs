//! Products: which kernel computes them, and the form in which it reads activations.

use tenure_graph::{Op, Plan, Step, Val, WeightId};
use tenure_tensor::DType;

use crate::hazard::{Access, Region};
use crate::kernel::{Kernel, RowForm};
use crate::kinds::Amount;
use crate::layout::WORD;

use super::{Bounds, Lowering, NotLowered, Run};

impl Bounds {
    /// The kernel for products of few rows by weights of a type, or of many, and how it reads the rows.
    fn product(self, dtype: DType, amount: Amount) -> (Kernel, RowForm) {
        let integer = self.integer && dtype.is_block();
        match (amount, self.cooperative) {
            // Weights in 32 bits keep them.
            (Amount::Many, Some(_)) if dtype != DType::F32 => (Kernel::MatMulCooperative, RowForm::F16),
            (Amount::Many, _) if integer => (Kernel::MatMulInteger, RowForm::I16),
            (Amount::Many, _) => (Kernel::MatMul, RowForm::F32),
            (Amount::Few, _) if integer => (Kernel::MatVecInteger, RowForm::I16),
            (Amount::Few, _) => (Kernel::MatVec, RowForm::F32),
        }
    }
}

/// Bytes of the rows of activations that products read in forms of their own, the most at a time.
pub(crate) fn rows_bytes(plan: &Plan, bounds: Bounds) -> u64 {
    let of = |step: &Step| {
        let Op::MatMul { x, w, .. } = step.op else { return 0 };
        let bytes = |amount: Amount| match bounds.product(plan.weight(w).spec.dtype, amount).1 {
            RowForm::F32 => 0,
            form => {
                let rows = amount.most(plan.shape().capacity(plan.value(x).rows));
                form.row_bytes(plan.value(x).cols as u64).saturating_mul(rows as u64)
            }
        };
        Amount::ALL.map(bytes).into_iter().max().unwrap_or(0)
    };
    plan.steps().iter().map(of).max().unwrap_or(0)
}

/// What rows of activations lie in the scratch segment: of which value, and in which forms where they are few or many.
#[derive(Clone, Copy)]
pub(super) struct Reformed {
    val: Val,
    /// By [`Amount`].
    forms: [RowForm; 2],
}

impl Lowering<'_> {
    pub(super) fn matmul(&mut self, x: Val, w: WeightId, bias: Option<WeightId>, out: Val) -> Result<(), NotLowered> {
        let (format, row) = self.matrix(w);
        let (k, n) = (self.cols(x), self.cols(out));
        let bias = bias.map(|bias| self.vector(bias)).transpose()?;
        for amount in Amount::ALL {
            let capacity = self.plan.shape().capacity(self.plan.value(x).rows);
            if amount.most(capacity) == 0 {
                continue;
            }
            let (kernel, form) = self.bounds.product(self.plan.weight(w).spec.dtype, amount);
            self.reform(x, form, amount)?;
            let shape = self.bounds.cooperative.filter(|_| kernel == Kernel::MatMulCooperative);
            let constants = [format, shape.map_or(0, |shape| shape.constant())];
            let most = self.bounds.groups * u64::from(kernel.tile().columns);
            let widest = form.row_bytes(k);
            for (first, count) in self.windows(n, row, most, || self.row_name(w))? {
                let weight = self.rows_of(w, row, first, count);
                self.runs(&[x, out], (widest, Some(amount)), (k * count, 1), |me, run| {
                    let x = match form {
                        RowForm::F32 => me.read(x, run),
                        RowForm::I16 | RowForm::F16 => (me.reformed(x, form, run), Access::Read),
                    };
                    // What is bound in place of a bias that is not there is not read.
                    let operands = vec![x, weight, bias.unwrap_or(x), me.write(out, run)];
                    let words = [k, row / WORD, count, n, first, u64::from(bias.is_some())].map(|word| word as u32);
                    me.push(kernel, constants, operands, words.to_vec(), count, run, k * count).amount = Some(amount);
                })?;
            }
        }
        Ok(())
    }

    /// Brings rows of activations into a form for products, unless the last that were are these.
    fn reform(&mut self, x: Val, form: RowForm, amount: Amount) -> Result<(), NotLowered> {
        let kernel = match form {
            RowForm::F32 => return Ok(()),
            RowForm::I16 => Kernel::RowsToI16,
            RowForm::F16 => Kernel::RowsToF16,
        };
        let none = Reformed { val: x, forms: [RowForm::F32; 2] };
        let mut there = self.reformed.filter(|there| there.val == x).unwrap_or(none);
        if std::mem::replace(&mut there.forms[amount as usize], form) == form {
            return Ok(());
        }
        let k = self.cols(x);
        // A workgroup takes whole rows in f16.
        let columns = if form == RowForm::F16 { 1 } else { k };
        self.runs(&[x], (form.row_bytes(k), Some(amount)), (0, 1), |me, run| {
            let operands = vec![me.read(x, run), (me.reformed(x, form, run), Access::Write)];
            me.push(kernel, [0; 2], operands, vec![k as u32], columns, run, 0).amount = Some(amount);
        })?;
        self.reformed = Some(there);
        Ok(())
    }

    /// Whether products read a result as integers where it has so many rows.
    fn is_read_as_i16(&self, out: Val, amount: Amount) -> bool {
        self.plan.steps().iter().any(|step| match step.op {
            Op::MatMul { x, w, .. } if x == out => {
                self.bounds.product(self.plan.weight(w).spec.dtype, amount).1 == RowForm::I16
            }
            _ => false,
        })
    }

    /// An operation by the first of the kernels, or by the second where it is to leave its result as integers too.
    pub(super) fn for_products(
        &mut self,
        (plain, i16): (Kernel, Option<Kernel>),
        (inputs, weight): (&[Val], Option<(Region, Access)>),
        (constant, words): (u32, Vec<u32>),
        columns: u64,
        out: Val,
    ) -> Result<(), NotLowered> {
        let values: Vec<Val> = inputs.iter().copied().chain([out]).collect();
        let leaves = Amount::ALL.map(|amount| i16.is_some() && self.is_read_as_i16(out, amount));
        let recordings = match leaves {
            [few, many] if few == many => vec![(None, few)],
            [few, many] => vec![(Some(Amount::Few), few), (Some(Amount::Many), many)],
        };
        for (amount, leaves) in recordings {
            let kernel = i16.filter(|_| leaves);
            let wide = kernel.map_or(0, |_| RowForm::I16.row_bytes(self.cols(out)));
            self.runs(&values, (wide, amount), (0, 1), |me, run| {
                let mut operands: Vec<_> = inputs.iter().map(|&input| me.read(input, run)).chain(weight).collect();
                operands.push(me.write(out, run));
                operands.extend(kernel.map(|_| (me.reformed(out, RowForm::I16, run), Access::Write)));
                let kernel = kernel.unwrap_or(plain);
                me.push(kernel, [constant, 0], operands, words.clone(), columns, run, 0).amount = amount;
            })?;
        }
        if leaves.contains(&true) {
            let forms = leaves.map(|leaves| if leaves { RowForm::I16 } else { RowForm::F32 });
            self.reformed = Some(Reformed { val: out, forms });
        }
        Ok(())
    }

    /// Where rows lie in a form for products.
    fn reformed(&self, x: Val, form: RowForm, run: Run) -> Region {
        let row = form.row_bytes(self.cols(x));
        Region { buffer: self.sites.scratch, offset: run.first * row, bytes: run.count * row }
    }
}
