//! What the validation layer says.

use std::ffi::{CStr, c_void};
use std::sync::{Arc, Mutex, PoisonError};

use ash::vk;

use crate::error::VulkanError;
use crate::raw::device::called;

/// The layer's name.
pub(crate) const LAYER: &CStr = c"VK_LAYER_KHRONOS_validation";

/// Collects the messages of Khronos' validation layer. Clones share one list, so it can be read after the device is
/// closed: objects left behind are told of then.
#[derive(Clone, Debug, Default)]
pub struct ValidationLog(Arc<Mutex<Vec<String>>>);

impl ValidationLog {
    /// A log without messages.
    pub fn new() -> Self {
        ValidationLog::default()
    }

    /// The warnings and errors so far.
    pub fn messages(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What tells the layer to write here.
    pub(crate) fn messenger_info(&self) -> vk::DebugUtilsMessengerCreateInfoEXT<'_> {
        vk::DebugUtilsMessengerCreateInfoEXT::default()
            .message_severity(
                vk::DebugUtilsMessageSeverityFlagsEXT::WARNING | vk::DebugUtilsMessageSeverityFlagsEXT::ERROR,
            )
            .message_type(
                vk::DebugUtilsMessageTypeFlagsEXT::VALIDATION | vk::DebugUtilsMessageTypeFlagsEXT::PERFORMANCE,
            )
            .pfn_user_callback(Some(note))
            .user_data(Arc::as_ptr(&self.0).cast_mut().cast())
    }
}

/// Takes a message into the log it is meant for.
unsafe extern "system" fn note(
    _severity: vk::DebugUtilsMessageSeverityFlagsEXT,
    _kind: vk::DebugUtilsMessageTypeFlagsEXT,
    data: *const vk::DebugUtilsMessengerCallbackDataEXT<'_>,
    log: *mut c_void,
) -> vk::Bool32 {
    // SAFETY: `log` is the address of a list that the instance holds a share of until it is destroyed, and `data` with
    // its string is the layer's and valid during the call.
    let (list, text) = unsafe {
        let list = &*log.cast_const().cast::<Mutex<Vec<String>>>();
        let text = if data.is_null() || (*data).p_message.is_null() {
            String::new()
        } else {
            CStr::from_ptr((*data).p_message).to_string_lossy().into_owned()
        };
        (list, text)
    };
    push(list, text);
    vk::FALSE
}

fn push(list: &Mutex<Vec<String>>, text: String) {
    list.lock().unwrap_or_else(PoisonError::into_inner).push(text);
}

/// A messenger of an instance.
pub(crate) struct Messenger {
    calls: ash::ext::debug_utils::Instance,
    raw: vk::DebugUtilsMessengerEXT,
    _log: ValidationLog,
}

impl Messenger {
    pub(crate) fn new(entry: &ash::Entry, instance: &ash::Instance, log: &ValidationLog) -> Result<Self, VulkanError> {
        let calls = ash::ext::debug_utils::Instance::new(entry, instance);
        // SAFETY: the extension is enabled; the log outlives the messenger, which holds a share of it.
        let raw = unsafe { calls.create_debug_utils_messenger(&log.messenger_info(), None) };
        let raw = raw.map_err(called("vkCreateDebugUtilsMessengerEXT"))?;
        Ok(Messenger { calls, raw, _log: log.clone() })
    }
}

impl Drop for Messenger {
    fn drop(&mut self) {
        // SAFETY: made by `new`, destroyed here alone, before the instance (see `Instance::drop`).
        unsafe { self.calls.destroy_debug_utils_messenger(self.raw, None) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clones_share_their_messages() {
        let log = ValidationLog::new();
        push(&log.clone().0, "seen".to_owned());
        assert_eq!(log.messages(), ["seen"]);
    }
}
