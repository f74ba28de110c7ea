//! Where the weights of a plan lie, and how they come there.

use std::path::Path;
use std::sync::Arc;

use tenure_device::{
    Backend, DeviceLane, HostBytes, Lease, Load, LoadItem, SourceError, Stop, WEIGHT_ALIGN, WeightPlace,
};
use tenure_graph::{PlanError, WeightUse};
use tenure_models::image::PartWeights;
use tenure_tensor::ByteSize;
use tenure_weights::{MappedTensor, StoredTensor, TrustFile, WeightStore};

use crate::error::{Cause, Error};

/// How weights are reached that the device can use as the file has them. Others are always read and repacked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WeightAccess {
    /// From a mapping of the file, without a copy. If another process shortens the file meanwhile, the operating
    /// system ends this process with a signal when the missing part is touched; choose it for files nobody writes to.
    #[default]
    Mapped,
    /// Read into memory of the budget. A file that shrinks or changes meanwhile is a `FileChanged` error of the load;
    /// afterwards the file is not needed.
    Staged,
}

/// Where weights come from.
pub(crate) trait WeightSource: Sync {
    /// Reads bytes of a tensor, from `offset` within it.
    fn read_at(&self, name: &str, offset: u64, into: &mut [u8]) -> Result<(), SourceError>;

    /// Whether a tensor's bytes lie in the file as they are, in one piece.
    fn is_contiguous(&self, name: &str) -> bool;

    /// The bytes of such a tensor.
    fn map(&self, name: &str) -> Result<MappedTensor, Error>;

    /// That the files are what they were when they were opened.
    fn verify_unchanged(&self) -> Result<(), Error>;

    /// The file, or the first of several.
    fn path(&self) -> &Path;
}

/// Where the weights of a plan will be.
pub(crate) struct Placement {
    places: Vec<Planned>,
    /// Sizes of the segments they take.
    pub(crate) segments: Vec<ByteSize>,
    /// Bytes used from the file's mapping.
    pub(crate) mapped: ByteSize,
    /// Bytes of the file that are brought into the device's memory.
    pub(crate) resident: ByteSize,
}

/// Where a weight will be.
enum Planned {
    /// In one of the segments, from `offset` on.
    Resident {
        segment: usize,
        offset: u64,
    },
    Mapped,
}

impl Placement {
    pub(crate) fn new(
        backend: &dyn Backend,
        weights: &[WeightUse],
        access: WeightAccess,
        source: &dyn WeightSource,
    ) -> Self {
        let mut placement =
            Placement { places: Vec::new(), segments: Vec::new(), mapped: ByteSize::ZERO, resident: ByteSize::ZERO };
        for weight in weights {
            let layout = backend.weight_layout(weight);
            let can_map = layout.mappable && access == WeightAccess::Mapped;
            if can_map && source.is_contiguous(&weight.spec.name) {
                placement.mapped += layout.bytes;
                placement.places.push(Planned::Mapped);
                continue;
            }
            placement.resident += weight.spec.bytes().unwrap_or(ByteSize::ZERO);
            let end = placement.segments.last().map(|last| last.align_up(WEIGHT_ALIGN));
            let fits = |offset: &ByteSize| *offset + layout.bytes <= backend.largest_segment();
            let offset = end.filter(fits).unwrap_or_else(|| {
                placement.segments.push(ByteSize::ZERO);
                ByteSize::ZERO
            });
            let segment = placement.segments.len() - 1;
            placement.segments[segment] = offset + layout.bytes;
            placement.places.push(Planned::Resident { segment, offset: offset.get() });
        }
        placement
    }

    /// Brings the weights, those the placement was made for, into `segments`; where each is then.
    pub(crate) fn load(
        &self,
        lane: &mut DeviceLane,
        weights: &[WeightUse],
        segments: &[Lease],
        source: &dyn WeightSource,
        progress: &(dyn Fn(ByteSize) + Sync),
        stop: &Stop,
    ) -> Result<Vec<WeightPlace>, Error> {
        let (mut items, mut places) = (Vec::new(), Vec::with_capacity(weights.len()));
        for (weight, place) in weights.iter().zip(&self.places) {
            match *place {
                Planned::Resident { segment, offset } => {
                    let lease = &segments[segment];
                    items.push(LoadItem { weight, lease, offset });
                    places.push(WeightPlace::Resident { lease: lease.clone(), offset });
                }
                Planned::Mapped => {
                    places.push(WeightPlace::Mapped(Arc::new(Mapped(source.map(&weight.spec.name)?))));
                }
            }
        }
        let read = |item: usize, offset: u64, into: &mut [u8]| -> Result<(), SourceError> {
            source.read_at(&items[item].weight.spec.name, offset, into)
        };
        lane.load(&Load { items: &items, read: &read, progress }, stop)
            .map_err(|error| Cause::Load { path: source.path().to_owned(), source: error })?;
        source.verify_unchanged()?;
        Ok(places)
    }
}

impl WeightSource for WeightStore {
    fn read_at(&self, name: &str, offset: u64, into: &mut [u8]) -> Result<(), SourceError> {
        Ok(WeightStore::read_at(self, stored(self, name)?, offset, into)?)
    }

    fn is_contiguous(&self, _name: &str) -> bool {
        true
    }

    fn map(&self, name: &str) -> Result<MappedTensor, Error> {
        Ok(WeightStore::map(self, stored(self, name)?, TrustFile)?)
    }

    fn verify_unchanged(&self) -> Result<(), Error> {
        Ok(WeightStore::verify_unchanged(self)?)
    }

    fn path(&self) -> &Path {
        self.files().next().unwrap_or(Path::new(""))
    }
}

impl WeightSource for PartWeights {
    fn read_at(&self, name: &str, offset: u64, into: &mut [u8]) -> Result<(), SourceError> {
        Ok(PartWeights::read_at(self, name, offset, into)?)
    }

    fn is_contiguous(&self, name: &str) -> bool {
        PartWeights::is_contiguous(self, name)
    }

    fn map(&self, name: &str) -> Result<MappedTensor, Error> {
        let missing = || PlanError::MissingTensor { name: name.to_owned() };
        let mapped = PartWeights::map(self, name, TrustFile)
            .map_err(|source| Cause::Model { path: PartWeights::path(self).to_owned(), source })?;
        Ok(mapped.ok_or_else(missing)?)
    }

    fn verify_unchanged(&self) -> Result<(), Error> {
        Ok(PartWeights::verify_unchanged(self)
            .map_err(|source| Cause::Model { path: PartWeights::path(self).to_owned(), source })?)
    }

    fn path(&self) -> &Path {
        PartWeights::path(self)
    }
}

/// A plan names only tensors the store has; a missing one is reported all the same.
fn stored<'s>(store: &'s WeightStore, name: &str) -> Result<&'s StoredTensor, PlanError> {
    store.find(name).ok_or_else(|| PlanError::MissingTensor { name: name.to_owned() })
}

/// A mapped tensor, as a backend holds it.
struct Mapped(MappedTensor);

impl HostBytes for Mapped {
    fn bytes(&self) -> &[u8] {
        &self.0
    }
}
