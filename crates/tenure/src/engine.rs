//! The engine: a device with its budget, maybe a host beside it, and what is loaded on them.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tenure_cpu::{Cpu, CpuOptions};
use tenure_device::{BudgetError, Cancel, Deadline, Device, Footprint, Report, Stop};
use tenure_models::image::ImagePaths;
use tenure_tensor::ByteSize;
use tenure_vulkan::{Vulkan, VulkanOptions};
use tenure_weights::WeightStore;

use crate::error::{Cause, Error};
use crate::family::{Family, ModelHandle, Released, StillInUse};
use crate::image::{Image, ImageOptions};
use crate::text::{Text, TextOptions};

/// How long the short path waits for memory.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long the short path waits for a load.
const LOAD_PATIENCE: Duration = Duration::from_secs(60 * 60);

/// A device and the memory budget that everything loaded on it shares. Clones are the same engine.
#[derive(Clone, Debug)]
pub struct Engine {
    device: Device,
    host: Option<Device>,
}

/// What loading a model takes, to the byte, before a byte is allocated.
pub struct LoadPlan<F: Family> {
    pub(crate) inner: F::Plan,
}

/// What loading a model takes of one device.
#[derive(Clone, Debug)]
pub struct Share {
    /// The device.
    pub device: Device,
    /// What is taken of its budget.
    pub footprint: Footprint,
}

impl Share {
    /// Whether it fits into what is free now.
    pub fn fits(&self) -> bool {
        self.footprint.total() <= self.device.report().free()
    }
}

/// The right to load one model: what its plan takes of each device is set aside. Not `Clone`; dropping it gives back
/// what was not used.
#[derive(Debug)]
pub struct Reservation {
    /// As the plan's shares are.
    pub(crate) shares: Vec<tenure_device::Reservation>,
}

impl Reservation {
    /// What is set aside, on all devices together.
    pub fn remaining(&self) -> ByteSize {
        self.shares.iter().map(tenure_device::Reservation::remaining).sum()
    }

    /// Whether it is for these shares, whole.
    fn is_for(&self, shares: &[Share]) -> bool {
        let mut pairs = self.shares.iter().zip(shares);
        self.shares.len() == shares.len()
            && pairs.all(|(held, share)| held.device().is(&share.device) && held.remaining() == share.footprint.total())
    }
}

/// How to load.
#[derive(Clone)]
pub struct LoadOptions {
    /// When to give up.
    pub deadline: Deadline,
    /// Ends the load early.
    pub cancel: Cancel,
    /// Told bytes done and bytes in all, from several threads.
    pub progress: Option<Arc<dyn Fn(ByteSize, ByteSize) + Send + Sync>>,
}

impl Default for LoadOptions {
    fn default() -> Self {
        LoadOptions { deadline: Deadline::after(LOAD_PATIENCE), cancel: Cancel::new(), progress: None }
    }
}

impl Engine {
    /// An engine on the processor of this machine, which may use the memory that is there.
    ///
    /// # Errors
    /// When worker threads cannot be started.
    pub fn auto() -> Result<Self, Error> {
        Engine::cpu(CpuOptions::default())
    }

    /// An engine on the CPU.
    ///
    /// # Errors
    /// When worker threads cannot be started.
    pub fn cpu(options: CpuOptions) -> Result<Self, Error> {
        let budget = options.budget.unwrap_or_else(tenure_cpu::host_memory);
        let cpu = Cpu::new(&options)?;
        Ok(Engine::on(Device::new(Arc::new(cpu), budget)))
    }

    /// An engine on a GPU, through Vulkan. Loader and driver are looked for now.
    ///
    /// # Errors
    /// When there is no Vulkan on this machine, or no such device.
    pub fn vulkan(options: VulkanOptions) -> Result<Self, Error> {
        let vulkan = Vulkan::open(&options)?;
        let budget = vulkan.budget();
        Ok(Engine::on(Device::new(Arc::new(vulkan), budget)))
    }

    /// An engine on a device of the caller's making.
    pub fn on(device: Device) -> Self {
        Engine { device, host: None }
    }

    /// With a second device for what of a model is not offloaded to the first ([`crate::Offload`]), with a budget of
    /// its own.
    pub fn with_host(self, host: Device) -> Self {
        Engine { host: Some(host), ..self }
    }

    /// An engine on the same device opened anew, with the same options and budget and nothing loaded on it, and the same
    /// host: the way on after [`crate::ErrorKind::DeviceLost`]. Models and sessions of this engine keep to the old device.
    ///
    /// # Errors
    /// When the device cannot be opened.
    pub fn reopen(&self) -> Result<Self, Error> {
        let device = self.device.reopen()?;
        Ok(Engine { device, host: self.host.clone() })
    }

    /// The device.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The device beside it.
    pub fn host(&self) -> Option<&Device> {
        self.host.as_ref()
    }

    /// Who holds what of the engine's device; a host has a report of its own ([`Device::report`]).
    pub fn report(&self) -> Report {
        self.device.report()
    }

    /// Works out what loading would take. Reads headers only, allocates nothing on the device.
    ///
    /// # Errors
    /// When the file is no model Tenure can run, or an option is out of bounds.
    pub fn plan<F: Family>(&self, source: &Arc<F::Source>, options: &F::Options) -> Result<LoadPlan<F>, Error> {
        Ok(LoadPlan { inner: F::plan(self, source, options)? })
    }

    /// Sets aside what `plan` takes, waiting for it until `stop`.
    ///
    /// # Errors
    /// With the bytes needed, free, who holds the rest, and what to change.
    pub fn reserve<F: Family>(&self, plan: &LoadPlan<F>, stop: &Stop) -> Result<Reservation, Error> {
        let reserve = |share: &Share| share.device.reserve(F::label(&plan.inner), &share.footprint, stop);
        let shares: Result<_, BudgetError> = F::shares(&plan.inner).iter().map(reserve).collect();
        match shares {
            Ok(shares) => Ok(Reservation { shares }),
            Err(error @ (BudgetError::TooLarge { .. } | BudgetError::NoRoom { .. })) => {
                Err(Cause::DoesNotFit { source: error, advice: F::advice(&plan.inner, self) }.into())
            }
            Err(other) => Err(other.into()),
        }
    }

    /// Loads what was planned into what was reserved. A reservation is used once:
    ///
    /// ```compile_fail,E0382
    /// use tenure::{Engine, LoadOptions, LoadPlan, Reservation, Text};
    ///
    /// fn twice(engine: &Engine, a: LoadPlan<Text>, b: LoadPlan<Text>, reservation: Reservation) {
    ///     let _ = engine.load(a, reservation, &LoadOptions::default());
    ///     let _ = engine.load(b, reservation, &LoadOptions::default());
    /// }
    /// ```
    ///
    /// # Errors
    /// When reading, memory or time fails. Everything taken is given back.
    pub fn load<F: Family>(
        &self,
        plan: LoadPlan<F>,
        reservation: Reservation,
        options: &LoadOptions,
    ) -> Result<ModelHandle<F>, Error> {
        let shares = F::shares(&plan.inner);
        if !reservation.is_for(shares) {
            let needed = shares.iter().map(|share| share.footprint.total()).sum();
            return Err(Cause::WrongReservation { reserved: reservation.remaining(), needed }.into());
        }
        Ok(ModelHandle::new(F::load(plan.inner, reservation, options)?))
    }

    /// Gives the model's memory back before it returns.
    ///
    /// # Errors
    /// [`StillInUse`] with the handle, when sessions or other handles still hold the model at the deadline, or a device is
    /// still at work with it.
    pub fn unload<F: Family>(&self, handle: ModelHandle<F>, deadline: Deadline) -> Result<Released, StillInUse<F>> {
        handle.release(deadline)
    }

    /// The short path: opens, plans, reserves and loads a text model with default options.
    ///
    /// # Errors
    /// As the steps it takes.
    pub fn load_text(&self, path: impl AsRef<Path>) -> Result<ModelHandle<Text>, Error> {
        self.load_text_with(path, &TextOptions::default(), &LoadOptions::default())
    }

    /// [`Engine::load_text`] with options.
    ///
    /// # Errors
    /// As the steps it takes.
    pub fn load_text_with(
        &self,
        path: impl AsRef<Path>,
        options: &TextOptions,
        load: &LoadOptions,
    ) -> Result<ModelHandle<Text>, Error> {
        let store = Arc::new(WeightStore::open(path.as_ref())?);
        self.load_planned(self.plan::<Text>(&store, options)?, load)
    }
}

impl Engine {
    /// The short path for images: opens, plans, reserves and loads a model with default options.
    ///
    /// # Errors
    /// As the steps it takes.
    pub fn load_image(&self, path: impl AsRef<Path>) -> Result<ModelHandle<Image>, Error> {
        self.load_image_with(&ImagePaths::new(path.as_ref()), &ImageOptions::default(), &LoadOptions::default())
    }

    /// [`Engine::load_image`] with options.
    ///
    /// # Errors
    /// As the steps it takes.
    pub fn load_image_with(
        &self,
        paths: &ImagePaths,
        options: &ImageOptions,
        load: &LoadOptions,
    ) -> Result<ModelHandle<Image>, Error> {
        self.load_planned(self.plan::<Image>(&Image::open(paths)?, options)?, load)
    }

    fn load_planned<F: Family>(&self, plan: LoadPlan<F>, load: &LoadOptions) -> Result<ModelHandle<F>, Error> {
        let stop = Stop { deadline: Deadline::after(PATIENCE), cancel: load.cancel.clone() };
        let reservation = self.reserve(&plan, &stop)?;
        self.load(plan, reservation, load)
    }
}

impl<F: Family> LoadPlan<F> {
    /// What loading takes of each device.
    pub fn shares(&self) -> &[Share] {
        F::shares(&self.inner)
    }

    /// What loading takes of all devices together.
    pub fn bytes(&self) -> ByteSize {
        self.shares().iter().map(|share| share.footprint.total()).sum()
    }

    /// What to change if it does not fit into what is free.
    pub fn advice(&self, engine: &Engine) -> String {
        F::advice(&self.inner, engine)
    }
}
