//! The memory of a loaded image model, and the network that is being computed in it.

use std::collections::{BTreeMap, HashMap};
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tenure_device::{
    Device, DeviceLane, KvPlace, Lease, Memory, Pool, Program, Reservation, SegmentKind, Stop, WeightPlace,
};
use tenure_graph::{KvType, Plan, PlanError, WeightUse};
use tenure_models::image::{DenoiserConfig, ImageModel, Part};
use tenure_tensor::ByteSize;

use crate::error::{Cause, Error};
use crate::image::options::Loading;
use crate::image::work::{Network, Work};
use crate::text::carve_all;
use crate::weights::{Placement, WeightSource};

/// A network's weights, as planned.
pub(crate) struct PlannedNetwork {
    pub(crate) weights: Vec<WeightUse>,
    pub(crate) placement: Placement,
    /// The most its steps take beside them.
    pub(crate) arena: ByteSize,
    pub(crate) scratch: ByteSize,
}

/// Room for one network at a time. Whoever computes takes it, and gives it back after each step.
pub(crate) struct Bench {
    limits: Arc<Limits>,
    free: Mutex<Option<Box<Tools>>>,
    back: Condvar,
}

/// How large steps may be; it does not change while the model is loaded.
pub(crate) struct Limits {
    device: Device,
    model: Arc<ImageModel>,
    room: Most,
}

/// The most there is.
enum Most {
    /// For each network's steps.
    Kept { arena: ByteSize, scratch: ByteSize },
    /// For one network, and what each one's weights take of it.
    Phase { total: ByteSize, weights: BTreeMap<Network, ByteSize> },
}

/// What a network is computed with.
pub(crate) struct Tools {
    lane: DeviceLane,
    limits: Arc<Limits>,
    planned: BTreeMap<Network, PlannedNetwork>,
    memory: Room,
    /// What is bound.
    current: Option<(Work, Program)>,
    /// What was spent, ever.
    spent: Spent,
    /// Who has taken the tools wants to be told of networks that are brought in.
    told: Option<Loading>,
}

/// What work took.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Spent {
    /// Time on bringing networks in.
    pub(crate) brought: Duration,
    /// Operations of networks, as [`tenure_graph::Plan::operations`] counts them.
    pub(crate) operations: u64,
}

/// The model's memory.
enum Room {
    /// Every network's weights are there.
    Kept { networks: BTreeMap<Network, Weights>, arena: Lease, scratch: Option<Lease> },
    /// One phase's, by turns.
    Phase { pool: Pool, held: Option<Held> },
}

/// One network's memory.
struct Held {
    network: Network,
    weights: Weights,
    arena: Lease,
    scratch: Option<Lease>,
}

/// Where each weight is.
type Weights = HashMap<String, WeightPlace>;

/// How long one that waits for the bench sleeps before it looks at its own deadline.
const NAP: Duration = Duration::from_millis(20);

impl Bench {
    pub(crate) fn new(tools: Tools) -> Self {
        Bench { limits: tools.limits.clone(), free: Mutex::new(Some(Box::new(tools))), back: Condvar::new() }
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Waits until nobody else computes.
    ///
    /// `loading` is told of networks that are brought in meanwhile.
    pub(crate) fn take(&self, loading: Option<&Loading>, stop: &Stop) -> Result<Taken<'_>, Error> {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            stop.check()?;
            if let Some(mut tools) = free.take() {
                tools.told = loading.cloned();
                return Ok(Taken { bench: self, before: tools.spent, tools: Some(tools) });
            }
            free = self.back.wait_timeout(free, NAP).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// The tools, until dropped.
pub(crate) struct Taken<'b> {
    bench: &'b Bench,
    tools: Option<Box<Tools>>,
    before: Spent,
}

impl Taken<'_> {
    /// What was spent since the tools were taken.
    pub(crate) fn spent(&self) -> Spent {
        Spent {
            brought: self.spent.brought.saturating_sub(self.before.brought),
            operations: self.spent.operations.saturating_sub(self.before.operations),
        }
    }
}

impl Deref for Taken<'_> {
    type Target = Tools;

    fn deref(&self) -> &Tools {
        self.tools.as_ref().expect("only dropping takes them away")
    }
}

impl DerefMut for Taken<'_> {
    fn deref_mut(&mut self) -> &mut Tools {
        self.tools.as_mut().expect("only dropping takes them away")
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        if let Some(tools) = &mut self.tools {
            tools.told = None;
        }
        *self.bench.free.lock().unwrap_or_else(PoisonError::into_inner) = self.tools.take();
        self.bench.back.notify_one();
    }
}

impl Tools {
    /// The tools of a model whose networks are all in memory.
    pub(crate) fn keeping(
        model: Arc<ImageModel>,
        planned: BTreeMap<Network, PlannedNetwork>,
        mut reservation: Reservation,
        progress: &(dyn Fn(ByteSize) + Sync),
        stop: &Stop,
    ) -> Result<Self, Error> {
        let mut lane = reservation.device().open_lane()?;
        let mut segments = carve_all(&mut reservation, SegmentKind::Weights)?.into_iter();
        let arena = carve_all(&mut reservation, SegmentKind::Arena)?.pop().ok_or(PlanError::Empty)?;
        let scratch = carve_all(&mut reservation, SegmentKind::Scratch)?.pop();
        let mut networks = BTreeMap::new();
        for (&network, plan) in &planned {
            let own: Vec<Lease> = segments.by_ref().take(plan.placement.segments.len()).collect();
            networks.insert(network, bring(&mut lane, &model, network, plan, &own, progress, stop)?);
        }
        let most = Most::Kept { arena: arena.bytes(), scratch: scratch.as_ref().map_or(ByteSize::ZERO, Lease::bytes) };
        Ok(Tools {
            limits: Arc::new(Limits { device: lane.device().clone(), model, room: most }),
            lane,
            planned,
            memory: Room::Kept { networks, arena, scratch },
            current: None,
            spent: Spent::default(),
            told: None,
        })
    }

    /// The tools of a model one of whose networks is in memory at a time.
    pub(crate) fn by_phase(
        model: Arc<ImageModel>,
        planned: BTreeMap<Network, PlannedNetwork>,
        reservation: Reservation,
    ) -> Result<Self, Error> {
        let lane = reservation.device().open_lane()?;
        let device = lane.device().clone();
        let of_weights = |planned: &PlannedNetwork| -> ByteSize {
            planned.placement.segments.iter().map(|&bytes| device.backend().round_up(bytes)).sum()
        };
        let weights = planned.iter().map(|(&network, planned)| (network, of_weights(planned))).collect();
        let room = Most::Phase { total: reservation.remaining(), weights };
        Ok(Tools {
            limits: Arc::new(Limits { device, model, room }),
            lane,
            planned,
            memory: Room::Phase { pool: reservation.into_pool(), held: None },
            current: None,
            spent: Spent::default(),
            told: None,
        })
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Columns of the denoiser's prompt.
    pub(crate) fn prompt_width(&self) -> usize {
        match &self.limits.model.config().denoiser {
            DenoiserConfig::Mmdit(facts) => facts.context,
            DenoiserConfig::Unet(_) => 0,
        }
    }

    /// The program of `work`, to be run once; its weights are brought in where they are not there.
    pub(crate) fn program(&mut self, work: &Work, stop: &Stop) -> Result<&mut Program, Error> {
        if self.current.as_ref().is_none_or(|(bound, _)| bound != work) {
            self.current = None;
            let program = self.bind(work, stop)?;
            self.current = Some((work.clone(), program));
        }
        let (_, program) = self.current.as_mut().ok_or(PlanError::Empty)?;
        self.spent.operations += program.plan().operations();
        Ok(program)
    }

    fn bind(&mut self, work: &Work, stop: &Stop) -> Result<Program, Error> {
        let network = work.network();
        let plan = self.limits.plan(work)?;
        let backend = self.lane.device().backend();
        backend.supports(&plan, KvType::F32)?;
        let needed = (plan.arena(), backend.scratch(&plan));
        self.enter(network, needed, stop)?;
        let (weights, arena, scratch) = match &self.memory {
            Room::Kept { networks, arena, scratch } => (networks.get(&network), arena, scratch),
            Room::Phase { held: Some(held), .. } => (Some(&held.weights), &held.arena, &held.scratch),
            Room::Phase { held: None, .. } => return Err(PlanError::Empty.into()),
        };
        let place = |weight: &WeightUse| {
            let missing = || PlanError::MissingTensor { name: weight.spec.name.clone() };
            weights.and_then(|weights| weights.get(&weight.spec.name)).cloned().ok_or_else(missing)
        };
        let weights = plan.weights().iter().map(place).collect::<Result<_, _>>()?;
        let kv = KvPlace { lease: None, blocks: 0, kv: KvType::F32 };
        let memory = Memory { weights, kv, arena: arena.clone(), scratch: scratch.clone(), exchange: None };
        Ok(self.lane.bind(Arc::new(plan), &memory)?)
    }

    /// Sees to it that a network's memory is there, with an arena and scratch of so many bytes; another's makes room for
    /// it.
    fn enter(&mut self, network: Network, needed: (ByteSize, ByteSize), stop: &Stop) -> Result<(), Error> {
        let room = self.limits.beside_weights(network);
        let planned = self.planned.get(&network).ok_or(PlanError::Empty)?;
        let Room::Phase { pool, held } = &mut self.memory else { return Ok(()) };
        if held.as_ref().is_some_and(|held| held.network == network && held.holds(needed)) {
            return Ok(());
        }
        let before = held.take().filter(|held| held.network == network);
        // What the largest image takes is enough for most steps; long prompts may take more where that leaves room.
        let round = |bytes| pool.device().backend().round_up(bytes);
        let most = (planned.arena.max(needed.0), planned.scratch.max(needed.1));
        let (arena, scratch) = if round(most.0) + round(most.1) <= room { most } else { needed };
        let begun = Instant::now();
        // An arena that is too small goes before the larger one comes.
        let weights = before.map(|held| held.weights);
        let arena = pool.carve(SegmentKind::Arena, arena)?;
        let scratch = (scratch > ByteSize::ZERO).then(|| pool.carve(SegmentKind::Scratch, scratch)).transpose()?;
        let weights = match weights {
            Some(weights) => weights,
            None => {
                let sizes = planned.placement.segments.iter();
                let segments =
                    sizes.map(|&bytes| pool.carve(SegmentKind::Weights, bytes)).collect::<Result<Vec<_>, _>>()?;
                let (total, done) = (planned.placement.resident, Mutex::new(ByteSize::ZERO));
                let progress = |bytes: ByteSize| {
                    // Several threads read; what is told only grows.
                    let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
                    *done += bytes;
                    if let Some(told) = &self.told {
                        told.tell(network, *done, total);
                    }
                };
                bring(&mut self.lane, &self.limits.model, network, planned, &segments, &progress, stop)?
            }
        };
        *held = Some(Held { network, weights, arena, scratch });
        self.spent.brought += begun.elapsed();
        Ok(())
    }
}

impl Limits {
    /// The recorded step of `work`.
    ///
    /// # Errors
    /// When there is no room for it.
    pub(crate) fn plan(&self, work: &Work) -> Result<Plan, Error> {
        let (plan, network) = (self.record(work)?, work.network());
        if self.has_room(network, &plan) {
            return Ok(plan);
        }
        let (arena, scratch) = (plan.arena(), self.device.backend().scratch(&plan));
        let (needed, held) = match &self.room {
            // Each has its own room; what lacks some is told.
            Most::Kept { arena: held, .. } if arena > *held => (arena, *held),
            Most::Kept { scratch: held, .. } => (scratch, *held),
            Most::Phase { .. } => (arena + scratch, self.beside_weights(network)),
        };
        Err(Cause::ImageTooLarge { network: network.to_string(), needed, held }.into())
    }

    /// Whether there is room for a step.
    pub(crate) fn has_room_for(&self, work: &Work) -> Result<bool, Error> {
        Ok(self.has_room(work.network(), &self.record(work)?))
    }

    fn record(&self, work: &Work) -> Result<Plan, Error> {
        let of_model = |source| Cause::Model { path: self.model.path().to_owned(), source };
        Ok(work.record(&self.model).map_err(of_model)?)
    }

    /// Whether there is room for the steps of `plan`, of `network`.
    fn has_room(&self, network: Network, plan: &Plan) -> bool {
        let backend = self.device.backend();
        let (needs, needs_scratch) = (plan.arena(), backend.scratch(plan));
        match &self.room {
            Most::Kept { arena, scratch } => needs <= *arena && needs_scratch <= *scratch,
            Most::Phase { .. } => {
                backend.round_up(needs) + backend.round_up(needs_scratch) <= self.beside_weights(network)
            }
        }
    }

    /// What there is for arena and scratch of a network's steps.
    fn beside_weights(&self, network: Network) -> ByteSize {
        match &self.room {
            Most::Kept { arena, scratch } => *arena + *scratch,
            Most::Phase { total, weights } => {
                total.saturating_sub(weights.get(&network).copied().unwrap_or(ByteSize::ZERO))
            }
        }
    }
}

impl Held {
    /// Whether arena and scratch have so many bytes.
    fn holds(&self, (arena, scratch): (ByteSize, ByteSize)) -> bool {
        arena <= self.arena.bytes() && scratch <= self.scratch.as_ref().map_or(ByteSize::ZERO, Lease::bytes)
    }
}

/// Brings a network's weights into its segments.
fn bring(
    lane: &mut DeviceLane,
    model: &ImageModel,
    network: Network,
    planned: &PlannedNetwork,
    segments: &[Lease],
    progress: &(dyn Fn(ByteSize) + Sync),
    stop: &Stop,
) -> Result<Weights, Error> {
    let part = part_of(network);
    let source = model.require(part).map_err(|source| Cause::Model { path: model.path().to_owned(), source })?;
    let source: &dyn WeightSource = source;
    let places = planned.placement.load(lane, &planned.weights, segments, source, progress, stop)?;
    let names = planned.weights.iter().map(|weight| weight.spec.name.clone());
    Ok(names.zip(places).collect())
}

/// The part of a model that has a network's weights.
pub(crate) const fn part_of(network: Network) -> Part {
    match network {
        Network::Text(part) | Network::Encoder(part) | Network::Decoder(part) => part,
        Network::Denoiser => Part::Denoiser,
    }
}
