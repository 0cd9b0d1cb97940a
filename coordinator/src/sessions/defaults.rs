//! What a session has that does not say so, and the bounds of what it may say.

use cooper_common::{
    error::{Error, Result},
    limits::exec,
    network::Policy,
};
use cooper_proto::v1;

use super::network;
use crate::check;

/// Settings of the coordinator.
#[derive(Debug, Clone)]
pub struct Defaults {
    /// What sessions reach.
    pub network: Policy,
    pub memory_bytes: u64,
    /// 0 = never.
    pub hibernate_after_ms: u64,
}

impl Default for Defaults {
    fn default() -> Self {
        Self { network: Policy::default(), memory_bytes: exec::MEMORY_BYTES, hibernate_after_ms: 0 }
    }
}

impl Defaults {
    /// Fills in what a request leaves open.
    ///
    /// # Errors
    /// `invalid_argument` for what is out of bounds.
    pub fn fill(&self, request: &mut v1::CreateSessionRequest) -> Result<()> {
        request.limits = Some(self.limits(request.limits.unwrap_or_default())?);
        request.network = Some(network::of(request.network.take(), &self.network)?);
        request.hibernate_after_ms.get_or_insert(self.hibernate_after_ms);
        Ok(())
    }

    /// # Errors
    /// `invalid_argument` for what is out of bounds.
    pub fn limits(&self, mut limits: v1::Limits) -> Result<v1::Limits> {
        let or = |value: &mut u64, default: u64| {
            if *value == 0 {
                *value = default;
            }
        };
        or(&mut limits.exec_timeout_ms, exec::TIMEOUT_MS);
        or(&mut limits.file_size_bytes, exec::FILE_SIZE_BYTES);
        or(&mut limits.output_bytes, exec::OUTPUT_BYTES);
        or(&mut limits.memory_bytes, self.memory_bytes);
        or(&mut limits.disk_bytes, exec::DISK_BYTES);
        or(&mut limits.inodes_max, exec::INODES);
        if limits.open_files == 0 {
            limits.open_files = exec::OPEN_FILES;
        }
        if limits.processes_max == 0 {
            limits.processes_max = exec::PROCESSES;
        }
        check::at_least("limits.memory_bytes", limits.memory_bytes, exec::MEMORY_BYTES_MIN)?;
        check::at_least("limits.processes_max", limits.processes_max.into(), exec::PROCESSES_MIN.into())?;
        check::at_most("limits.processes_max", limits.processes_max.into(), exec::PROCESSES_MAX.into())?;
        if limits.cpu_millis > 0 {
            check::at_least("limits.cpu_millis", limits.cpu_millis.into(), exec::CPU_MILLIS_MIN.into())?;
            check::at_most("limits.cpu_millis", limits.cpu_millis.into(), exec::CPU_MILLIS_MAX.into())?;
        }
        check::at_most("limits.exec_timeout_ms", limits.exec_timeout_ms, exec::TIMEOUT_MS_MAX)?;
        check::at_most("limits.output_bytes", limits.output_bytes, exec::OUTPUT_BYTES_MAX)?;
        Ok(limits)
    }
}

/// Limits without those of these names, which get their defaults back.
///
/// # Errors
/// `invalid_argument` for a name that is no limit's.
pub fn reset(mut limits: v1::Limits, names: &[String]) -> Result<v1::Limits> {
    for name in names {
        match name.as_str() {
            "exec_timeout_ms" => limits.exec_timeout_ms = 0,
            "memory_bytes" => limits.memory_bytes = 0,
            "file_size_bytes" => limits.file_size_bytes = 0,
            "open_files" => limits.open_files = 0,
            "output_bytes" => limits.output_bytes = 0,
            "processes_max" => limits.processes_max = 0,
            "cpu_millis" => limits.cpu_millis = 0,
            "disk_bytes" => limits.disk_bytes = 0,
            "inodes_max" => limits.inodes_max = 0,
            other => {
                let problem = format!("reset_limits: there is no limit {other:?}");
                return Err(Error::invalid(problem).with_hint("name a field of Limits, e.g. cpu_millis"));
            }
        }
    }
    Ok(limits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_request_leaves_open_is_filled_and_what_it_says_stays() {
        let defaults = Defaults { memory_bytes: 64 << 20, hibernate_after_ms: 5, ..Defaults::default() };
        let mut open = v1::CreateSessionRequest::default();
        defaults.fill(&mut open).unwrap();
        let limits = open.limits.unwrap();
        assert_eq!(
            (limits.memory_bytes, limits.disk_bytes, limits.cpu_millis),
            (64 << 20, exec::DISK_BYTES, 0)
        );
        assert_eq!(open.hibernate_after_ms, Some(5));
        let limits = v1::Limits { memory_bytes: 32 << 20, ..v1::Limits::default() };
        let mut said = v1::CreateSessionRequest {
            limits: Some(limits),
            hibernate_after_ms: Some(0),
            ..v1::CreateSessionRequest::default()
        };
        defaults.fill(&mut said).unwrap();
        assert_eq!(said.limits.unwrap().memory_bytes, 32 << 20);
        assert_eq!(said.hibernate_after_ms, Some(0), "never is said, too");
    }

    #[test]
    fn a_limit_that_is_reset_has_its_default_again() {
        let limits = v1::Limits { cpu_millis: 500, memory_bytes: 64 << 20, ..v1::Limits::default() };
        let names = ["cpu_millis", "memory_bytes"].map(str::to_owned);
        let limits = Defaults::default().limits(reset(limits, &names).unwrap()).unwrap();
        assert_eq!((limits.cpu_millis, limits.memory_bytes), (0, exec::MEMORY_BYTES));
        assert!(reset(limits, &["speed".to_owned()]).is_err());
    }
}
