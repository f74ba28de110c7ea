//! From the bytes of a file to a weight's layout.

use tenure_device::{Load, LoadError, LoadItem, host_room};
use tenure_tensor::{ByteSize, codec};

use crate::layout::Layout;
use crate::raw::segment::SegmentBytes;
use crate::simd::panels;

/// Bytes of a file that a loading thread holds at a time.
pub(crate) const STAGING: ByteSize = ByteSize::new(1 << 20);

/// A run of rows of one weight, small enough for one thread's staging.
pub(crate) struct Chunk {
    pub(crate) item: usize,
    layout: Layout,
    first_row: usize,
    rows: usize,
}

/// Divides a weight into chunks of whole panels that fit the staging, at least one panel each.
pub(crate) fn divide(item: usize, load: &LoadItem<'_>, layout: Layout, chunks: &mut Vec<Chunk>) {
    let (rows, cols) = (load.weight.rows(), load.weight.cols());
    let row = load.weight.spec.dtype.row_bytes(cols).unwrap_or(0).max(1);
    let step = (STAGING.get() as usize / row).max(1).next_multiple_of(panels::ROWS);
    for first_row in (0..rows).step_by(step) {
        chunks.push(Chunk { item, layout, first_row, rows: step.min(rows - first_row) });
    }
}

pub(crate) fn bring_in(
    load: &Load<'_>,
    segment: &SegmentBytes<'_>,
    chunk: &Chunk,
    staging: &mut Vec<u8>,
) -> Result<(), LoadError> {
    let LoadItem { weight, offset, .. } = load.items[chunk.item];
    let (dtype, cols) = (weight.spec.dtype, weight.cols());
    let row = dtype.row_bytes(cols).unwrap_or(0);
    let (from, len) = (chunk.first_row * row, chunk.rows * row);
    let read = |into: &mut [u8]| {
        (load.read)(chunk.item, from as u64, into)
            .map_err(|error| LoadError::Source { name: weight.spec.name.clone(), error })
    };
    let offset = offset as usize;
    match chunk.layout {
        // SAFETY: chunks of one weight are disjoint, and so are places of different weights, as the caller of `Lane::load`
        // promised; nobody else uses the lease while the load runs.
        Layout::Raw => read(unsafe { segment.range(offset + from, len) })?,
        Layout::Vector => {
            host_room(staging, len)?;
            staging.resize(len, 0);
            read(staging)?;
            // SAFETY: as above.
            let bytes = unsafe { segment.range(offset, cols * size_of::<f32>()) };
            if let Ok(floats) = bytemuck::try_cast_slice_mut(bytes) {
                // The type was accepted when the plan was made.
                let _: Result<(), codec::CodecError> = codec::dequantize(dtype, staging, floats);
            }
        }
        Layout::Kernel => {
            host_room(staging, len)?;
            staging.resize(len, 0);
            read(staging)?;
            // SAFETY: as above.
            let bytes = unsafe { segment.range(offset + from, len) };
            let &[_, channels, height, width] = weight.spec.shape.dims() else { return Ok(()) };
            let element = dtype.block_bytes();
            for (file, held) in staging.chunks_exact(row).zip(bytes.chunks_exact_mut(row)) {
                for (at, held) in held.chunks_exact_mut(element).enumerate() {
                    let (place, channel) = (at / channels, at % channels);
                    let from = (channel * height * width + place) * element;
                    held.copy_from_slice(&file[from..from + element]);
                }
            }
        }
        Layout::Panels => {
            host_room(staging, len)?;
            staging.resize(len, 0);
            read(staging)?;
            let panel = panels::panel_bytes(dtype, cols).unwrap_or(0);
            let first = chunk.first_row / panels::ROWS;
            let count = chunk.rows.div_ceil(panels::ROWS);
            // SAFETY: as above.
            let bytes = unsafe { segment.range(offset + first * panel, count * panel) };
            for (rows, panel) in staging.chunks(panels::ROWS * row).zip(bytes.chunks_exact_mut(panel)) {
                panels::pack(dtype, cols, rows, panel);
            }
        }
    }
    (load.progress)(ByteSize::of(len));
    Ok(())
}
