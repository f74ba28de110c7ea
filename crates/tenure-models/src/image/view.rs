//! One tensor as diffusers has it, seen in a tensor as a file has it.

use tenure_tensor::{DType, Shape, TensorSpec, codec};
use tenure_weights::{ErrorKind, MappedTensor, Shown, StoredTensor, TrustFile, WeightStore, WeightsError};

use crate::image::names::Take;

/// Bytes of a source read at once, where it is not read straight into the caller's buffer.
const BAND: usize = 256 << 10;

/// A tensor of a part: its name and shape, and where its bytes come from.
#[derive(Clone, Debug)]
pub(crate) struct View {
    pub(crate) spec: TensorSpec,
    /// The place of the file's tensor in its store.
    pub(crate) source: usize,
    /// Whether the source's blocks are decoded to the type of `spec`.
    decoded: bool,
    form: Form,
}

/// Where bytes of the source are wanted, which are those of its elements decoded where the view is of another type.
#[derive(Clone, Debug)]
enum Form {
    /// These, one behind the other.
    Pieces([Piece; 2]),
    /// Those of a matrix of `rows` rows and `cols` columns, column by column.
    Transposed { rows: usize, cols: usize },
}

#[derive(Clone, Copy, Debug, Default)]
struct Piece {
    start: u64,
    len: u64,
}

/// Why a tensor cannot be seen as another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unfit {
    /// Its shape does not allow it.
    Shape,
    /// Its blocks would have to be taken apart.
    Blocks,
}

impl View {
    /// `tensor`, at `source` of its store and of the shape `shape`, as `name`.
    pub(crate) fn new(
        name: String,
        take: Take,
        source: usize,
        tensor: &StoredTensor,
        shape: &Shape,
    ) -> Result<View, Unfit> {
        let stored = tensor.spec().dtype;
        let matrix = match *shape.dims() {
            // The blocks of a kernel of one pixel are those of the matrix that it is.
            [n, k, 1, 1] if stored.is_block() => Shape::from([n, k]),
            _ => shape.clone(),
        };
        let (shape, dims) = (&matrix, matrix.dims());
        let outer = dims.first().copied().unwrap_or(1);
        // Blocks are decoded where another shape than the file's own has rows that are not whole blocks, where elements
        // are exchanged one by one, and where plain numbers are wanted: also of vectors, which stable-diffusion.cpp
        // quantises too.
        let plain = take == Take::Numbers || dims.len() < 2;
        let apart = stored.row_bytes(shape.cols()).is_none() || take == Take::Transposed;
        let decoded = stored.is_block() && (plain || apart);
        if decoded && !stored.is_computable() {
            return Err(Unfit::Blocks);
        }
        let (dtype, bytes) = if decoded {
            let dtype = if plain { DType::F32 } else { DType::F16 };
            (dtype, (shape.elements().unwrap_or(0) * dtype.block_bytes()) as u64)
        } else {
            (stored, tensor.bytes().get())
        };
        let whole = Form::Pieces([Piece { start: 0, len: bytes }, Piece::default()]);
        let (shape, form) = match take {
            Take::Whole | Take::Numbers => (shape.clone(), whole),
            Take::Part { at, of } => {
                let rows =
                    Some(outer / of.max(1)).filter(|rows| rows * of == outer && *rows > 0).ok_or(Unfit::Shape)?;
                let len = bytes / of as u64;
                let form = Form::Pieces([Piece { start: len * at as u64, len }, Piece::default()]);
                (with_outer(dims, rows), form)
            }
            Take::Swapped => {
                if !outer.is_multiple_of(2) || outer == 0 {
                    return Err(Unfit::Shape);
                }
                let len = bytes / 2;
                (shape.clone(), Form::Pieces([Piece { start: len, len }, Piece { start: 0, len }]))
            }
            Take::Transposed => {
                let &[rows, cols] = dims else { return Err(Unfit::Shape) };
                (Shape::from([cols, rows]), Form::Transposed { rows, cols })
            }
            Take::Pixel => match *dims {
                [n, k, 1, 1] | [n, k, 1] => (Shape::from([n, k]), whole),
                [_] | [_, _] => (shape.clone(), whole),
                _ => return Err(Unfit::Shape),
            },
            Take::Outer => match *dims {
                [_, _, _] => (shape.clone(), whole),
                [n, k] => (Shape::from([1, n, k]), whole),
                _ => return Err(Unfit::Shape),
            },
        };
        Ok(View { spec: TensorSpec { name, dtype, shape }, source, decoded, form })
    }

    /// Reads `buf.len()` bytes from `offset` on.
    pub(crate) fn read_at(&self, store: &WeightStore, offset: u64, buf: &mut [u8]) -> Result<(), WeightsError> {
        let source = self.source_in(store)?;
        let bytes = self.bytes();
        let len = buf.len() as u64;
        if offset.checked_add(len).is_none_or(|end| end > bytes) {
            let kind = ErrorKind::ReadOutOfTensor { tensor: Shown::new(&self.spec.name), offset, len, bytes };
            return Err(fault(store, source, kind));
        }
        match &self.form {
            Form::Pieces(pieces) => self.read_pieces(store, source, pieces, offset, buf),
            &Form::Transposed { rows, cols } => self.read_transposed(store, source, rows, cols, offset, buf),
        }
    }

    /// The bytes as they lie in the mapped file, where they do in one piece.
    pub(crate) fn map(&self, store: &WeightStore, trust: TrustFile) -> Result<Option<MappedTensor>, WeightsError> {
        let Form::Pieces([piece, Piece { len: 0, .. }]) = &self.form else { return Ok(None) };
        if self.decoded {
            return Ok(None);
        }
        let source = self.source_in(store)?;
        Ok(store.map(source, trust)?.part(piece.start, piece.len))
    }

    /// Whether its bytes lie in the file as they are, in one piece.
    pub(crate) fn is_contiguous(&self) -> bool {
        !self.decoded && matches!(self.form, Form::Pieces([_, Piece { len: 0, .. }]))
    }

    /// Its size.
    pub(crate) fn bytes(&self) -> u64 {
        self.spec.bytes().map_or(0, |bytes| bytes.get())
    }

    fn source_in<'s>(&self, store: &'s WeightStore) -> Result<&'s StoredTensor, WeightsError> {
        // A view is made of a tensor of this store.
        store.tensors().nth(self.source).ok_or_else(|| {
            let kind = ErrorKind::ReadOutOfTensor { tensor: Shown::new(&self.spec.name), offset: 0, len: 0, bytes: 0 };
            WeightsError::new(store.files().next().unwrap_or("".as_ref()), kind)
        })
    }

    /// Bytes of the source, or of its elements decoded.
    fn read_plain(
        &self,
        store: &WeightStore,
        source: &StoredTensor,
        offset: u64,
        buf: &mut [u8],
    ) -> Result<(), WeightsError> {
        if self.decoded {
            read_decoded(store, source, self.spec.dtype, offset, buf)
        } else {
            store.read_at(source, offset, buf)
        }
    }

    fn read_pieces(
        &self,
        store: &WeightStore,
        source: &StoredTensor,
        pieces: &[Piece],
        offset: u64,
        mut buf: &mut [u8],
    ) -> Result<(), WeightsError> {
        let mut skip = offset;
        for piece in pieces {
            let left = piece.len.saturating_sub(skip).min(buf.len() as u64) as usize;
            let (now, rest) = std::mem::take(&mut buf).split_at_mut_checked(left).unwrap_or_default();
            if !now.is_empty() {
                self.read_plain(store, source, piece.start + skip, now)?;
            }
            buf = rest;
            skip = skip.saturating_sub(piece.len);
        }
        Ok(())
    }

    /// Reads the source in bands of rows and puts each element where it belongs.
    fn read_transposed(
        &self,
        store: &WeightStore,
        source: &StoredTensor,
        rows: usize,
        cols: usize,
        offset: u64,
        buf: &mut [u8],
    ) -> Result<(), WeightsError> {
        // Only then is the matrix known to have a size.
        if buf.is_empty() {
            return Ok(());
        }
        let size = self.spec.dtype.block_bytes();
        let (row, column) = (cols * size, rows * size);
        let start = offset as usize;
        let end = start + buf.len();
        // Columns of the source that are asked for.
        let wanted = start / column..(end - 1) / column + 1;
        let band_rows = (BAND / row).clamp(1, rows);
        let mut band = buffer(store, source, band_rows * row)?;
        for first in (0..rows).step_by(band_rows) {
            let count = band_rows.min(rows - first);
            let Some(band) = band.get_mut(..count * row) else { break };
            self.read_plain(store, source, (first * row) as u64, band)?;
            for (r, line) in band.chunks_exact(row).enumerate() {
                for col in wanted.clone() {
                    // The element's place among the bytes asked for; only part of it may be.
                    let at = (col * rows + first + r) * size;
                    let (from, to) = (at.max(start), (at + size).min(end));
                    if from < to
                        && let Some(target) = buf.get_mut(from - start..to - start)
                        && let Some(bytes) = line.get(col * size + (from - at)..col * size + (to - at))
                    {
                        target.copy_from_slice(bytes);
                    }
                }
            }
        }
        Ok(())
    }
}

fn with_outer(dims: &[usize], outer: usize) -> Shape {
    let mut dims = dims.to_vec();
    if let Some(first) = dims.first_mut() {
        *first = outer;
    }
    Shape::new(dims)
}

fn fault(store: &WeightStore, source: &StoredTensor, kind: ErrorKind) -> WeightsError {
    WeightsError::new(store.files().nth(source.file()).unwrap_or("".as_ref()), kind)
}

/// Bytes of the source's elements as numbers of the type `wanted`: decodes the blocks that they lie in.
fn read_decoded(
    store: &WeightStore,
    source: &StoredTensor,
    wanted: DType,
    offset: u64,
    buf: &mut [u8],
) -> Result<(), WeightsError> {
    if buf.is_empty() {
        return Ok(());
    }
    let size = wanted.block_bytes();
    let dtype = source.spec().dtype;
    let (block, block_bytes) = (dtype.block_len(), dtype.block_bytes());
    let (start, end) = (offset as usize, offset as usize + buf.len());
    let blocks = start / (block * size)..end.div_ceil(block * size);
    let at_once = (BAND / block_bytes).max(1);
    let mut raw = buffer(store, source, at_once.min(blocks.len()) * block_bytes)?;
    let mut decoded = Vec::new();
    let mut values = vec![0.0; at_once.min(blocks.len()) * block];
    let mut now = blocks.start;
    while now < blocks.end {
        let count = at_once.min(blocks.end - now);
        let (Some(raw), Some(values)) = (raw.get_mut(..count * block_bytes), values.get_mut(..count * block)) else {
            break;
        };
        store.read_at(source, (now * block_bytes) as u64, raw)?;
        decoded.clear();
        let done = codec::dequantize(dtype, raw, values).and_then(|()| codec::quantize(wanted, values, &mut decoded));
        done.map_err(|_| {
            let got = Shown::new(dtype.name());
            fault(store, source, ErrorKind::BadDtype { tensor: Shown::new(&source.spec().name), got })
        })?;
        let at = now * block * size;
        let (from, to) = (at.max(start), (at + decoded.len()).min(end));
        if from < to
            && let Some(target) = buf.get_mut(from - start..to - start)
            && let Some(bytes) = decoded.get(from - at..to - at)
        {
            target.copy_from_slice(bytes);
        }
        now += count;
    }
    Ok(())
}

fn buffer(store: &WeightStore, source: &StoredTensor, len: usize) -> Result<Vec<u8>, WeightsError> {
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(len).map_err(|_| {
        fault(store, source, ErrorKind::HostOutOfMemory { what: "rows of a tensor", bytes: len as u64 })
    })?;
    bytes.resize(len, 0);
    Ok(bytes)
}
