//! Which device a model runs on.

use std::io::Write;
use std::str::FromStr;

use serde_json::{Value, json};
use tenure::vulkan::{DeviceKind, DeviceSelector, VulkanError, devices};
use tenure::{ByteSize, Offload, Vulkan, VulkanOptions};

use crate::cli::Refusal;

/// No machine has so many GPUs.
const MOST_DEVICES: usize = 100;

/// The device asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceArg {
    /// The processor.
    Cpu,
    /// A discrete GPU if there is one, or else the processor.
    Auto,
    /// A GPU.
    Vulkan(DeviceSelector),
}

impl FromStr for DeviceArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "cpu" => Ok(DeviceArg::Cpu),
            None if text == "auto" => Ok(DeviceArg::Auto),
            None if text == "vulkan" => Ok(DeviceArg::Vulkan(DeviceSelector::Best)),
            Some(("vulkan", which)) if !which.is_empty() => {
                // Greater numbers are those of names.
                let index = which.parse().ok().filter(|&index| index < MOST_DEVICES).map(DeviceSelector::Index);
                Ok(DeviceArg::Vulkan(index.unwrap_or_else(|| DeviceSelector::Name(which.to_owned()))))
            }
            None | Some(_) => Err("expected cpu, auto, vulkan or vulkan:WHICH".to_owned()),
        }
    }
}

impl DeviceArg {
    /// The GPU meant, or `None` for the processor.
    pub fn resolve(&self) -> Option<DeviceSelector> {
        match self {
            DeviceArg::Cpu => None,
            DeviceArg::Vulkan(selector) => Some(selector.clone()),
            DeviceArg::Auto => {
                let discrete = devices().ok()?.into_iter().find(|device| device.kind == DeviceKind::Discrete)?;
                Some(DeviceSelector::Index(discrete.index))
            }
        }
    }

    /// Opens the GPU meant, if one is, with so many bytes of its memory.
    ///
    /// # Errors
    /// When there is no such device.
    pub fn open(&self, budget: Option<ByteSize>) -> Result<Option<Vulkan>, Refusal> {
        let Some(device) = self.resolve() else { return Ok(None) };
        let options = VulkanOptions { device, budget, ..VulkanOptions::default() };
        Ok(Some(Vulkan::open(&options).map_err(tenure::Error::from)?))
    }
}

/// How many layers a GPU computes: `all`, `auto`, or a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OffloadArg(pub Offload);

impl FromStr for OffloadArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(OffloadArg(match text {
            "all" => Offload::All,
            "auto" => Offload::Auto,
            number => Offload::Layers(number.parse().map_err(|_| "expected all, auto or a number of layers")?),
        }))
    }
}

/// Shows the GPUs of this machine, on stdout unless they are wanted as JSON. That there are none is no refusal.
///
/// # Errors
/// When stdout cannot be written, or a driver fails.
pub fn list_devices(json: bool) -> Result<Value, Refusal> {
    let (found, none) = match devices() {
        Ok(found) => (found, None),
        Err(error @ (VulkanError::NoLoader { .. } | VulkanError::NoDriver | VulkanError::NoDevice)) => {
            (Vec::new(), Some(error.to_string()))
        }
        Err(error) => return Err(tenure::Error::from(error).into()),
    };
    if !json {
        let mut out = std::io::stdout().lock();
        writeln!(out, "cpu")?;
        for device in &found {
            let (name, driver, kind) = (&device.name, &device.driver, device.kind);
            write!(
                out,
                "vulkan:{}  {name}  ({kind}, {driver}, Vulkan {})  {}",
                device.index, device.api, device.memory
            )?;
            if let Some(free) = device.free {
                write!(out, ", {free} free")?;
            }
            writeln!(out, "  {}  {} kernels", device.features, device.kernels())?;
        }
        if let Some(none) = &none {
            writeln!(out, "no GPU: {none}")?;
        }
    }
    let devices: Vec<Value> = found
        .iter()
        .map(|device| {
            json!({
                "device": format!("vulkan:{}", device.index),
                "name": device.name,
                "driver": device.driver,
                "api": device.api,
                "kind": device.kind.to_string(),
                "memory_bytes": device.memory.get(),
                "free_bytes": device.free.map(ByteSize::get),
                "features": device.features.to_string(),
                "kernels": device.kernels().to_string(),
            })
        })
        .collect();
    Ok(json!({ "devices": devices, "none": none }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_read_as_they_are_written() {
        let read = |text: &str| text.parse::<OffloadArg>().map(|OffloadArg(offload)| offload);
        assert_eq!(read("all"), Ok(Offload::All));
        assert_eq!(read("auto"), Ok(Offload::Auto));
        assert_eq!(read("0"), Ok(Offload::Layers(0)));
        assert_eq!(read("99"), Ok(Offload::Layers(99)));
        for wrong in ["", "-1", "some", "1.5"] {
            read(wrong).expect_err(wrong);
        }
    }

    #[test]
    fn devices_are_read_as_they_are_written() {
        let read = |text: &str| text.parse::<DeviceArg>();
        assert_eq!(read("cpu"), Ok(DeviceArg::Cpu));
        assert_eq!(read("auto"), Ok(DeviceArg::Auto));
        assert_eq!(read("vulkan"), Ok(DeviceArg::Vulkan(DeviceSelector::Best)));
        assert_eq!(read("vulkan:1"), Ok(DeviceArg::Vulkan(DeviceSelector::Index(1))));
        assert_eq!(read("vulkan:RTX"), Ok(DeviceArg::Vulkan(DeviceSelector::Name("RTX".to_owned()))));
        for wrong in ["", "gpu", "vulkan:", "cpu:0", "cuda:0"] {
            read(wrong).expect_err(wrong);
        }
    }
}
