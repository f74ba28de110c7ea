//! How much memory this process may use.

use std::path::{Path, PathBuf};

use tenure_tensor::ByteSize;

use crate::raw::memory;

/// The memory of this machine, or of the control groups this process is confined to, whichever is less.
pub fn host_memory() -> ByteSize {
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    limit_files(&groups)
        .into_iter()
        .filter_map(|file| std::fs::read_to_string(file).ok()?.trim().parse().ok())
        .fold(memory::physical(), |least, limit| least.min(ByteSize::new(limit)))
}

/// Where the limits of the groups named in `/proc/self/cgroup` and of those around them are: `memory.max` in version 2
/// (cgroups(7), "0::PATH"), `memory.limit_in_bytes` of the memory controller in version 1. A container often sees its
/// own group at the root, so the root's files are among them.
fn limit_files(groups: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let (root, name) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            _ if controllers.split(',').any(|controller| controller == "memory") => {
                ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
            }
            _ => continue,
        };
        let inside = Path::new(path.trim_start_matches('/'));
        files.extend(inside.ancestors().map(|group| Path::new(root).join(group).join(name)));
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_group_around_the_process_may_limit_it() {
        let files = limit_files("9:name=systemd:/\n4:memory:/box/7\n3:cpu,cpuacct:/x\n0::/user.slice/app\n");
        let want = [
            "/sys/fs/cgroup/memory/box/7/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/box/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/memory.limit_in_bytes",
            "/sys/fs/cgroup/user.slice/app/memory.max",
            "/sys/fs/cgroup/user.slice/memory.max",
            "/sys/fs/cgroup/memory.max",
        ];
        assert_eq!(files, want.map(PathBuf::from));
        assert!(limit_files("").is_empty() && limit_files("nonsense\n1:memory").is_empty());
        assert!(host_memory() > ByteSize::new(16 << 20));
    }
}
