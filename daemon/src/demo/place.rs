//! Where the shop stands: network namespaces and bridges, or Docker containers and networks. Both
//! inside a host namespace of the demo's own, with an outside beyond it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context, Result};
use testbed::{Bridge, Dockerd, Lab, Netns, ip_batch};

use super::shop::{
    self, CUSTOMERS, DROP_ZONE, NAMESPACE, Network, PAYMENTS, REPLICAS, Replica, SHOP_FRONT, UPLINK,
};

/// Names of the demo's namespaces begin with it.
pub(super) const LAB: &str = "portcullis-demo";
const UPLINK_INTERFACE: &str = "uplink";

/// The place. Dropping it removes everything.
#[derive(Debug)]
pub(super) struct Place {
    // Containers go before the namespace their daemon runs in.
    dockerd: Option<Dockerd>,
    bridges: BTreeMap<Network, Bridge>,
    outside: Netns,
    replicas: BTreeMap<&'static str, Netns>,
    lab: Lab,
}

impl Place {
    /// Builds networks and the outside; workloads come with [`Place::add`].
    pub(super) fn build(docker: bool) -> Result<Self> {
        let lab = Lab::new(LAB)?;
        let outside = outside(&lab)?;
        let mut place = Self {
            dockerd: None,
            bridges: BTreeMap::new(),
            outside,
            replicas: BTreeMap::new(),
            lab,
        };
        if docker {
            let dockerd = place.dockerd.insert(
                Dockerd::start(place.lab.host()).context("Docker cannot be used for the demo")?,
            );
            for network in Network::ALL {
                let [v4, v6] = [network.subnet_v4(), network.subnet_v6()];
                let mut create = vec!["network", "create", "--ipv6"];
                create.extend(["--subnet", &v4, "--subnet", &v6, network.name()]);
                dockerd.docker(&create)?;
            }
        } else {
            for network in Network::ALL {
                let [v4, v6] = network.gateway();
                let (v4, v6) = (format!("{v4}/24"), format!("{v6}/64"));
                let bridge = place.lab.bridge(network.name(), &v4, &v6)?;
                place.bridges.insert(network, bridge);
            }
        }
        Ok(place)
    }

    /// Starts one workload: a namespace, or a container.
    pub(super) fn add(&mut self, replica: &'static Replica) -> Result<()> {
        let netns = match &self.dockerd {
            Some(dockerd) => container(dockerd, replica)?,
            None => self.namespace(replica)?,
        };
        self.replicas.insert(replica.name, netns);
        Ok(())
    }

    fn namespace(&self, replica: &Replica) -> Result<Netns> {
        let mut workload = self.lab.workload(replica.name);
        for network in replica.networks {
            let [v4, v6] = network.addresses(replica.number);
            workload = workload
                .on(&self.bridges[network])
                .v4(&v4.to_string())
                .v6(&v6.to_string());
        }
        Ok(workload.build()?.netns)
    }

    /// The namespace the daemon runs in.
    pub(super) fn host(&self) -> &Netns {
        self.lab.host()
    }

    /// The namespace beyond the host.
    pub(super) fn outside(&self) -> &Netns {
        &self.outside
    }

    /// The namespace of a workload that was added.
    pub(super) fn netns(&self, name: &str) -> &Netns {
        &self.replicas[name]
    }

    /// Workloads that were added.
    pub(super) fn replicas(&self) -> impl Iterator<Item = &'static Replica> {
        REPLICAS
            .iter()
            .filter(|replica| self.replicas.contains_key(replica.name))
    }

    /// Docker's socket, if this place is made of containers.
    pub(super) fn docker_socket(&self) -> Option<PathBuf> {
        self.dockerd.as_ref().map(Dockerd::socket)
    }

    /// Name under which the daemon knows a workload.
    pub(super) fn workload_name(&self, replica: &Replica) -> String {
        match self.dockerd {
            Some(_) => container_name(replica),
            None => replica.name.to_owned(),
        }
    }

    /// Where customers reach the shop. Docker publishes a port on the host's IPv4 address; what it
    /// does for IPv6 depends on the kernel (its proxy hides who the customer is).
    pub(super) fn shop_front(&self) -> Vec<SocketAddr> {
        let addresses = match self.dockerd {
            Some(_) => UPLINK.addresses()[..1].to_vec(),
            None => Network::Front
                .addresses(shop::replica("edge").number)
                .to_vec(),
        };
        let socket = |address| SocketAddr::new(address, SHOP_FRONT);
        addresses.into_iter().map(socket).collect()
    }

    /// Whether a workload on one network reaches another network through the host. Docker keeps its
    /// networks apart.
    pub(super) fn routes_between_networks(&self) -> bool {
        self.dockerd.is_none()
    }

    /// The static inventory of the workloads that were added; containers need none.
    pub(super) fn inventory(&self) -> Option<String> {
        if self.dockerd.is_some() {
            return None;
        }
        let mut text = format!("kind: Inventory\nnamespaces:\n- name: {NAMESPACE}\nworkloads:\n");
        for replica in self.replicas() {
            let Replica { name, app, .. } = replica;
            let netns = self.netns(name).path().display();
            writeln!(
                text,
                "- {{name: {name}, namespace: {NAMESPACE}, labels: {{app: {app}}}, netns: {netns}}}"
            )
            .expect("writing to a string does not fail");
        }
        Some(text)
    }

    /// How to enter the namespaces.
    pub(super) fn how_to_enter(&self) -> String {
        self.lab.how_to_enter()
    }

    /// Removes everything and says what could not be removed.
    pub(super) fn destroy(self) -> Result<()> {
        // Its drop has no other way to report than standard error.
        drop(self.dockerd);
        self.lab.destroy().context("cannot remove the namespaces")
    }
}

/// The outside: one namespace that owns every address beyond the host, on the host's default route,
/// as the rest of the world is for a real host.
fn outside(lab: &Lab) -> Result<Netns> {
    let [v4, v6] = CUSTOMERS.addresses();
    let workload = lab
        .workload("outside")
        .routed()
        .v4(&v4.to_string())
        .v6(&v6.to_string())
        .host_name(UPLINK_INTERFACE)
        .build()?;
    let mut own = Vec::new();
    for address in [PAYMENTS, DROP_ZONE].iter().flat_map(|o| o.addresses()) {
        let nodad = if address.is_ipv6() { " nodad" } else { "" };
        own.push(format!("addr add {address} dev eth0{nodad}"));
    }
    // Customers come from the first address, whatever the kernel would choose.
    for (gateway, address) in [("169.254.1.1", v4), ("fe80::1", v6)] {
        own.push(format!(
            "route replace default via {gateway} dev eth0 src {address}"
        ));
    }
    ip_batch(&workload.netns, &own)?;
    let [host_v4, host_v6] = UPLINK.addresses();
    let dev = UPLINK_INTERFACE;
    ip_batch(
        lab.host(),
        &[
            format!("addr add {host_v4} dev {dev}"),
            format!("addr add {host_v6} dev {dev} nodad"),
            format!("route add default via {v4} dev {dev} onlink src {host_v4}"),
            format!("route add default via {v6} dev {dev} onlink src {host_v6}"),
        ],
    )?;
    Ok(workload.netns)
}

/// What `docker compose` would call it.
fn container_name(replica: &Replica) -> String {
    match replica.name.split_once('-') {
        Some(_) => format!("{NAMESPACE}-{}", replica.name),
        None => format!("{NAMESPACE}-{}-1", replica.name),
    }
}

fn container(dockerd: &Dockerd, replica: &Replica) -> Result<Netns> {
    let name = container_name(replica);
    let number = name.rsplit('-').next().unwrap_or("1");
    let labels = [
        ("project", NAMESPACE),
        ("service", replica.app),
        ("container-number", number),
        ("oneoff", "False"),
    ]
    .map(|(key, value)| format!("--label=com.docker.compose.{key}={value}"));
    let (first, others) = replica
        .networks
        .split_first()
        .expect("every workload is on a network");
    let [v4, v6] = first.addresses(replica.number).map(|a| a.to_string());
    let publish = format!("--publish=0.0.0.0:{SHOP_FRONT}:{SHOP_FRONT}");
    let mut options: Vec<&str> = labels.iter().map(String::as_str).collect();
    options.extend(["--network", first.name(), "--ip", &v4, "--ip6", &v6]);
    if replica.app == "edge" {
        options.push(&publish);
    }
    dockerd.run_sleeping(&name, &options)?;
    for network in others {
        let [v4, v6] = network.addresses(replica.number).map(|a| a.to_string());
        let mut connect = vec!["network", "connect", "--ip", &v4, "--ip6", &v6];
        connect.extend([network.name(), &name]);
        dockerd.docker(&connect)?;
    }
    Ok(dockerd.netns_of(&name)?)
}
