//! `linux/personality`: the execution domain, personality(2); runtime-spec config-linux "personality".

use oci_spec::runtime::LinuxPersonalityDomain;

use crate::attribute::Attribute;
use crate::declaration::{ContainerId, Declaration};
use crate::error::{Error, Result};
use crate::isolator::Isolator;
use crate::launch_info::ContainerLaunchInfo;
use crate::live::{Finding, Live, Target, Verdict};
use crate::observe;

/// `linux/personality`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Personality;

/// `PER_MASK`: the domain; the bits above are flags.
const DOMAIN: u64 = 0xff;

impl Isolator for Personality {
    fn name(&self) -> &'static str {
        "linux/personality"
    }

    fn prepare(&self, _: &ContainerId, declaration: &Declaration) -> Result<ContainerLaunchInfo> {
        let linux = declaration.spec.linux().as_ref();
        let flags = linux
            .and_then(|linux| linux.personality().as_ref())
            .and_then(|personality| personality.flags().as_ref());
        if let Some(flag) = flags.and_then(|flags| flags.first()) {
            return Err(Error::Config {
                field: "linux.personality.flags",
                value: flag.clone(),
                rule: "runtime-spec has no flags yet; leave them out".to_owned(),
            });
        }
        let set = declared(declaration).map(|(_, domain)| Attribute::Personality(domain));
        Ok(ContainerLaunchInfo {
            attributes: set.into_iter().collect(),
            ..Default::default()
        })
    }

    fn observe(&self, target: &Target, _: &Declaration, live: &mut Live) -> Result<()> {
        let text = observe::read(target, "personality")?;
        let number = u64::from_str_radix(text.trim(), 16);
        let malformed = std::io::ErrorKind::InvalidData;
        live.personality =
            Some(number.map_err(|_| observe::unseen(target, "personality", malformed))?);
        Ok(())
    }

    fn compare(&self, declaration: &Declaration, live: &Live) -> Vec<Finding> {
        let finding = |(name, declared): (LinuxPersonalityDomain, u64)| Finding {
            isolator: self.name(),
            item: "personality".to_owned(),
            declared: format!("{name} ({declared:#x})"),
            live: live
                .personality
                .map_or_else(|| "not seen".to_owned(), |live| format!("{live:#x}")),
            verdict: match live.personality {
                None => Verdict::Unknown,
                Some(live) if live & DOMAIN == declared => Verdict::Match,
                Some(_) => Verdict::Weaker,
            },
            read_from: "personality".to_owned(),
        };
        declared(declaration).map(finding).into_iter().collect()
    }
}

/// The domain, with its number in linux/personality.h.
fn declared(declaration: &Declaration) -> Option<(LinuxPersonalityDomain, u64)> {
    let linux = declaration.spec.linux().as_ref()?;
    let domain = linux.personality().as_ref()?.domain();
    Some(match domain {
        LinuxPersonalityDomain::PerLinux => (domain, 0),
        LinuxPersonalityDomain::PerLinux32 => (domain, 8),
    })
}
