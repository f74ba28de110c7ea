//! What people call samplers and schedules: short names for options, and A1111's labels, which stand in the parameters of
//! pictures.

use crate::diffusion::{AlignYourSteps, Method, SigmaRule};

impl Method {
    /// Every sampler with its usual options: name, label, itself.
    pub const NAMED: [(&'static str, &'static str, Method); 9] = [
        ("euler", "Euler", Method::Euler),
        ("euler_a", "Euler a", Method::EulerAncestral { eta: 1.0 }),
        ("heun", "Heun", Method::Heun),
        ("dpm++2m", "DPM++ 2M", Method::DPMPP_2M),
        ("dpm++2m_sde", "DPM++ 2M SDE", Method::DPMPP_2M_SDE),
        ("dpm++sde", "DPM++ SDE", Method::DPMPP_SDE),
        ("ddim", "DDIM", Method::Ddim { eta: 0.0 }),
        ("lcm", "LCM", Method::LCM),
        ("unipc", "UniPC", Method::UNIPC),
    ];

    /// The sampler of a name or label; spaces, underscores, hyphens and case do not matter.
    pub fn named(name: &str) -> Option<Method> {
        let found = Method::NAMED.iter().find(|(short, label, _)| same(name, short) || same(name, label));
        found.map(|(_, _, method)| *method)
    }

    /// A1111's label, which says nothing of options.
    pub fn label(&self) -> &'static str {
        match self {
            Method::Euler => "Euler",
            Method::EulerAncestral { .. } => "Euler a",
            Method::Heun => "Heun",
            Method::Dpmpp2m { .. } => "DPM++ 2M",
            Method::Dpmpp2mSde { .. } => "DPM++ 2M SDE",
            Method::DpmppSde { .. } => "DPM++ SDE",
            Method::Ddim { .. } => "DDIM",
            Method::Lcm { .. } => "LCM",
            Method::UniPc { .. } => "UniPC",
        }
    }
}

impl SigmaRule {
    /// Every rule for pictures that needs no list, with its usual options: name, label, itself.
    pub const NAMED: [(&'static str, &'static str, SigmaRule); 8] = [
        ("normal", "Normal", SigmaRule::Spaced),
        ("karras", "Karras", SigmaRule::KARRAS),
        ("exponential", "Exponential", SigmaRule::Exponential),
        ("beta", "Beta", SigmaRule::BETA),
        ("sgm_uniform", "SGM Uniform", SigmaRule::SgmUniform),
        ("simple", "Simple", SigmaRule::Simple),
        ("ays", "Align Your Steps", SigmaRule::AlignYourSteps(AlignYourSteps::StableDiffusion1)),
        ("ays_xl", "Align Your Steps XL", SigmaRule::AlignYourSteps(AlignYourSteps::StableDiffusionXl)),
    ];

    /// The rule of a name or label; spaces, underscores, hyphens and case do not matter.
    pub fn named(name: &str) -> Option<SigmaRule> {
        let found = SigmaRule::NAMED.into_iter().find(|(short, label, _)| same(name, short) || same(name, label));
        found.map(|(_, _, rule)| rule)
    }

    /// A1111's label, or "Custom" for a list.
    pub fn label(&self) -> &'static str {
        match self {
            SigmaRule::Spaced => "Normal",
            SigmaRule::Karras { .. } => "Karras",
            SigmaRule::Exponential => "Exponential",
            SigmaRule::Beta { .. } => "Beta",
            SigmaRule::SgmUniform => "SGM Uniform",
            SigmaRule::Simple => "Simple",
            SigmaRule::AlignYourSteps(AlignYourSteps::StableDiffusion1) => "Align Your Steps",
            SigmaRule::AlignYourSteps(AlignYourSteps::StableDiffusionXl) => "Align Your Steps XL",
            SigmaRule::AlignYourSteps(AlignYourSteps::StableVideoDiffusion) => "Align Your Steps SVD",
            SigmaRule::Sigmas(_) | SigmaRule::Timesteps(_) => "Custom",
        }
    }
}

fn same(a: &str, b: &str) -> bool {
    let heard = |text: &str| -> Vec<char> {
        let told = text.chars().filter(|c| !matches!(c, ' ' | '_' | '-'));
        told.map(|c| c.to_ascii_lowercase()).collect()
    };
    heard(a) == heard(b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_labels_lead_back() {
        for (name, label, method) in Method::NAMED {
            assert_eq!(Method::named(name), Some(method));
            assert_eq!(Method::named(&label.to_uppercase()), Some(method));
            assert_eq!(method.label(), label);
        }
        for (name, label, rule) in SigmaRule::NAMED {
            assert_eq!(SigmaRule::named(name).as_ref(), Some(&rule));
            assert_eq!(SigmaRule::named(label).as_ref(), Some(&rule));
            assert_eq!(rule.label(), label);
        }
        assert_eq!(Method::named("dpm++ 2m sde"), Some(Method::DPMPP_2M_SDE));
        assert_eq!(Method::named("dpm"), None);
        assert_eq!(SigmaRule::named(""), None);
    }
}
