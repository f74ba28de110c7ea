//! The memory of a loaded image model, and the network that is being computed in it.

use std::collections::{BTreeMap, HashMap};
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tenure_device::{
    Device, DeviceLane, KvPlace, Lease, Memory, Pool, Program, Reservation, SegmentKind, Stop, WeightPlace,
};
use tenure_graph::{KvType, Plan, PlanError, WeightUse};
use tenure_models::image::{DenoiserConfig, ImageModel};
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
    pub(crate) steps: StepMemory,
}

/// What steps take beside the weights.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct StepMemory {
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
    Kept(StepMemory),
    /// For one network, and what each one's weights take of it.
    Phase { total: ByteSize, weights: BTreeMap<Network, ByteSize> },
}

/// What a network is computed with.
pub(crate) struct Tools {
    lane: DeviceLane,
    limits: Arc<Limits>,
    planned: BTreeMap<Network, PlannedNetwork>,
    memory: Room,
    current: Option<Bound>,
    /// What was spent since they were taken.
    spent: Spent,
    /// Who has taken the tools wants to be told of networks that are brought in.
    told: Option<Loading>,
}

/// What is bound.
struct Bound {
    work: Work,
    program: Program,
    /// What each of its runs takes.
    each: Spent,
}

/// What work took.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Spent {
    /// Time on bringing networks in.
    pub(crate) brought: Duration,
    /// Operations of networks, as [`tenure_graph::Plan::operations`] counts them.
    pub(crate) operations: u64,
    /// The most memory that was allocated for a program: weights, arena and scratch.
    pub(crate) most: ByteSize,
}

impl Spent {
    /// Both.
    pub(crate) fn and(self, more: Spent) -> Spent {
        Spent {
            brought: self.brought + more.brought,
            operations: self.operations + more.operations,
            most: self.most.max(more.most),
        }
    }
}

/// The model's memory.
enum Room {
    /// Every network's weights are there.
    Kept { networks: BTreeMap<Network, Weights>, steps: StepLeases },
    /// One phase's, by turns.
    Phase { pool: Pool, held: Option<Held> },
}

/// One network's memory.
struct Held {
    network: Network,
    weights: Weights,
    steps: StepLeases,
}

/// What steps have beside the weights.
struct StepLeases {
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
                tools.spent = Spent::default();
                return Ok(Taken { bench: self, tools: Some(tools) });
            }
            free = self.back.wait_timeout(free, NAP).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// The tools, until dropped.
pub(crate) struct Taken<'b> {
    bench: &'b Bench,
    tools: Option<Box<Tools>>,
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
        let steps = StepLeases { arena, scratch };
        Ok(Tools {
            limits: Arc::new(Limits { device: lane.device().clone(), model, room: Most::Kept(steps.bytes()) }),
            lane,
            planned,
            memory: Room::Kept { networks, steps },
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
        if self.current.as_ref().is_none_or(|bound| bound.work != *work) {
            self.current = None;
            let program = self.bind(work, stop)?;
            let (operations, most) = (program.plan().operations(), self.allocated());
            let each = Spent { operations, most, ..Spent::default() };
            self.current = Some(Bound { work: work.clone(), program, each });
        }
        let Bound { program, each, .. } = self.current.as_mut().ok_or(PlanError::Empty)?;
        self.spent = self.spent.and(*each);
        Ok(program)
    }

    /// What was spent since the tools were taken.
    pub(crate) fn spent(&self) -> Spent {
        self.spent
    }

    /// The bytes of the leases that are held.
    fn allocated(&self) -> ByteSize {
        let weights = |planned: &PlannedNetwork| planned.placement.segments.iter().copied().sum::<ByteSize>();
        match &self.memory {
            Room::Kept { steps, .. } => self.planned.values().map(weights).sum::<ByteSize>() + steps.bytes().sum(),
            Room::Phase { held: Some(held), .. } => {
                self.planned.get(&held.network).map_or(ByteSize::ZERO, weights) + held.steps.bytes().sum()
            }
            Room::Phase { held: None, .. } => ByteSize::ZERO,
        }
    }

    fn bind(&mut self, work: &Work, stop: &Stop) -> Result<Program, Error> {
        let network = work.network();
        let (plan, needed) = self.limits.plan(work)?;
        self.lane.device().backend().supports(&plan, KvType::F32)?;
        self.enter(network, needed, stop)?;
        let (weights, StepLeases { arena, scratch }) = match &self.memory {
            Room::Kept { networks, steps } => (networks.get(&network), steps),
            Room::Phase { held: Some(held), .. } => (Some(&held.weights), &held.steps),
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

    /// Sees to it that a network's memory is there, with what a step needs; another's makes room for it.
    fn enter(&mut self, network: Network, needed: StepMemory, stop: &Stop) -> Result<(), Error> {
        let room = self.limits.beside_weights(network);
        let planned = self.planned.get(&network).ok_or(PlanError::Empty)?;
        let Room::Phase { pool, held } = &mut self.memory else { return Ok(()) };
        if held.as_ref().is_some_and(|held| held.network == network && needed.is_within(held.steps.bytes())) {
            return Ok(());
        }
        let before = held.take().filter(|held| held.network == network);
        // What the largest image takes is enough for most steps; long prompts may take more where that leaves room.
        let most = planned.steps.max(needed);
        let StepMemory { arena, scratch } = if most.rounded(pool.device()) <= room { most } else { needed };
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
        *held = Some(Held { network, weights, steps: StepLeases { arena, scratch } });
        self.spent.brought += begun.elapsed();
        Ok(())
    }
}

impl Limits {
    /// The recorded step of `work`, and what it takes.
    ///
    /// # Errors
    /// When there is no room for it.
    pub(crate) fn plan(&self, work: &Work) -> Result<(Plan, StepMemory), Error> {
        let (network, (plan, needed)) = (work.network(), self.record(work)?);
        if self.has_room(network, needed) {
            return Ok((plan, needed));
        }
        let (needed, held) = match &self.room {
            // Each has its own room; what lacks some is told.
            Most::Kept(held) if needed.arena > held.arena => (needed.arena, held.arena),
            Most::Kept(held) => (needed.scratch, held.scratch),
            Most::Phase { .. } => (needed.sum(), self.beside_weights(network)),
        };
        Err(Cause::ImageTooLarge { network: network.to_string(), needed, held }.into())
    }

    /// Whether there is room for a step.
    pub(crate) fn has_room_for(&self, work: &Work) -> Result<bool, Error> {
        let (_, needed) = self.record(work)?;
        Ok(self.has_room(work.network(), needed))
    }

    fn record(&self, work: &Work) -> Result<(Plan, StepMemory), Error> {
        let of_model = |source| Cause::Model { path: self.model.path().to_owned(), source };
        let plan = work.record(&self.model).map_err(of_model)?;
        let needed = StepMemory::of(&plan, &self.device);
        Ok((plan, needed))
    }

    /// Whether there is room for steps of a network that take so much.
    fn has_room(&self, network: Network, needed: StepMemory) -> bool {
        match &self.room {
            Most::Kept(held) => needed.is_within(*held),
            Most::Phase { .. } => needed.rounded(&self.device) <= self.beside_weights(network),
        }
    }

    /// What there is for arena and scratch of a network's steps.
    fn beside_weights(&self, network: Network) -> ByteSize {
        match &self.room {
            Most::Kept(held) => held.sum(),
            Most::Phase { total, weights } => {
                total.saturating_sub(weights.get(&network).copied().unwrap_or(ByteSize::ZERO))
            }
        }
    }
}

impl StepMemory {
    /// What a plan's steps take on a device.
    pub(crate) fn of(plan: &Plan, device: &Device) -> Self {
        StepMemory { arena: plan.arena(), scratch: device.backend().scratch(plan) }
    }

    /// Enough for either.
    pub(crate) fn max(self, other: Self) -> Self {
        StepMemory { arena: self.arena.max(other.arena), scratch: self.scratch.max(other.scratch) }
    }

    fn is_within(self, held: Self) -> bool {
        self.arena <= held.arena && self.scratch <= held.scratch
    }

    pub(crate) fn sum(self) -> ByteSize {
        self.arena + self.scratch
    }

    /// What both take as the device allocates.
    fn rounded(self, device: &Device) -> ByteSize {
        device.backend().round_up(self.arena) + device.backend().round_up(self.scratch)
    }
}

impl StepLeases {
    fn bytes(&self) -> StepMemory {
        let scratch = self.scratch.as_ref().map_or(ByteSize::ZERO, Lease::bytes);
        StepMemory { arena: self.arena.bytes(), scratch }
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
    let source =
        model.require(network.part()).map_err(|source| Cause::Model { path: model.path().to_owned(), source })?;
    let source: &dyn WeightSource = source;
    let places = planned.placement.load(lane, &planned.weights, segments, source, progress, stop)?;
    let names = planned.weights.iter().map(|weight| weight.spec.name.clone());
    Ok(names.zip(places).collect())
}
