package main

import (
	"fmt"
	"os"
	"strings"
)

// What each host runs, and with which settings.

const zoneLabel = "topology.kubernetes.io/zone"

// gracePeriod is how long a node may be silent before its pods count as lost; Kubernetes' own default.
func gracePeriod() string {
	if value := os.Getenv("PGWARDEN_NODE_GRACE"); value != "" {
		return value
	}
	return "50s"
}

// Collecting garbage half as often costs memory, which there is, and saves CPU, which there is not.
var lessGC = []string{"GOGC=200"}

func (c *Cluster) apiReady() string { return c.state("api", "ready") }

func (c *Cluster) apiMachine(p Programs) Machine {
	pki := func(name string) string { return c.state("pki", name) }
	control := func(kubeconfig string) []string {
		return []string{
			"--kubeconfig=" + pki(kubeconfig), "--authentication-kubeconfig=" + pki(kubeconfig),
			"--authorization-kubeconfig=" + pki(kubeconfig), "--leader-elect=false", "--profiling=false",
			"--bind-address=127.0.0.1",
		}
	}
	return Machine{
		Door: "127.0.0.1:6443",
		Units: []Unit{
			{Name: "etcd", Env: lessGC, Command: []string{
				"etcd", "--data-dir=" + c.state("api", "etcd"), "--unsafe-no-fsync", "--logger=zap", "--log-level=warn",
				"--listen-client-urls=http://127.0.0.1:2379", "--advertise-client-urls=http://127.0.0.1:2379",
				"--listen-peer-urls=http://127.0.0.1:2380",
			}},
			{Name: "kube-apiserver", Env: lessGC, Command: []string{
				p.kube("kube-apiserver"),
				"--etcd-servers=http://127.0.0.1:2379", "--advertise-address=" + c.address(c.apiHost().Last), "--secure-port=6443",
				"--service-cluster-ip-range=" + c.serviceNet(), "--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction",
				"--client-ca-file=" + pki("ca.crt"), "--tls-cert-file=" + pki("apiserver.crt"), "--tls-private-key-file=" + pki("apiserver.key"),
				"--service-account-key-file=" + pki("sa.pub"), "--service-account-signing-key-file=" + pki("sa.key"),
				"--service-account-issuer=https://kubernetes.default.svc",
				"--kubelet-client-certificate=" + pki("kubelet-client.crt"), "--kubelet-client-key=" + pki("kubelet-client.key"),
				"--kubelet-certificate-authority=" + pki("ca.crt"),
				// Nobody uses it, but the other components complain without end when it is missing.
				"--requestheader-client-ca-file=" + pki("ca.crt"), "--requestheader-allowed-names=nobody",
				// Node names don't resolve.
				"--kubelet-preferred-address-types=InternalIP",
				"--allow-privileged=true", "--profiling=false",
				// For nodeSize.
				"--feature-gates=MutatingAdmissionPolicy=true", "--runtime-config=admissionregistration.k8s.io/v1beta1=true",
			}},
			{Name: "kube-controller-manager", Wait: c.apiReady(), Env: lessGC, Command: append([]string{
				p.kube("kube-controller-manager"),
				"--service-account-private-key-file=" + pki("sa.key"), "--root-ca-file=" + pki("ca.crt"), "--use-service-account-credentials=true",
				"--cluster-signing-cert-file=" + pki("ca.crt"), "--cluster-signing-key-file=" + pki("ca.key"),
				"--allocate-node-cidrs=false", "--node-monitor-grace-period=" + gracePeriod(),
				// No cloud, no attachable disks, no autoscaling: nothing for these to do but look.
				"--controllers=*,-persistentvolume-attach-detach-controller,-horizontal-pod-autoscaler-controller," +
					"-service-lb-controller,-node-route-controller,-cloud-node-lifecycle-controller",
			}, control("controller-manager.kubeconfig")...)},
			{Name: "kube-scheduler", Wait: c.apiReady(), Env: lessGC, Command: append([]string{p.kube("kube-scheduler")}, control("scheduler.kubeconfig")...)},
			{Name: "provisioner", Wait: c.apiReady(), Env: lessGC, Command: []string{p.Provisioner, "--kubeconfig=" + pki("provisioner.kubeconfig"), "--state=" + c.State}},
			// Webhooks are Services: the API server's host needs the rules too.
			c.kubeProxy(p, "node1", ""),
		},
	}
}

// kubeProxy runs as the given node: outside the nodes there is no Node object for it to look itself up by.
func (c *Cluster) kubeProxy(p Programs, as, kubeconfig string) Unit {
	if kubeconfig == "" {
		kubeconfig = c.state("pki", "proxy.kubeconfig")
	}
	return Unit{Name: "kube-proxy", Wait: c.apiReady(), Env: lessGC, Command: []string{
		p.kube("kube-proxy"), "--kubeconfig=" + kubeconfig, "--hostname-override=" + as, "--proxy-mode=nftables",
		"--cluster-cidr=" + c.podNets(),
		// Read-only inside a network namespace.
		"--conntrack-max-per-core=0", "--conntrack-min=0", "--conntrack-tcp-timeout-established=0", "--conntrack-tcp-timeout-close-wait=0",
		"--oom-score-adj=0", "--healthz-bind-address=127.0.0.1:10256", "--metrics-bind-address=127.0.0.1:10249",
	}}
}

func (c *Cluster) dnsMachine(p Programs) (Machine, error) {
	corefile := fmt.Sprintf(`.:53 {
    bind %s
    errors
    cache 2
    kubernetes cluster.local in-addr.arpa ip6.arpa {
        kubeconfig %s
        pods insecure
        ttl 5
    }
}
`, c.address(c.dnsServer().Last), c.state("pki", "dns.kubeconfig"))
	file := c.state("dns", "Corefile")
	return Machine{Units: []Unit{{Name: "coredns", Wait: c.apiReady(), Env: lessGC, Command: []string{p.CoreDNS, "-conf", file}}}},
		writeFile(file, []byte(corefile), 0o644)
}

func (c *Cluster) clientMachine(p Programs) Machine {
	return Machine{Units: []Unit{c.kubeProxy(p, "node1", "")}}
}

// nodeMachine writes a node's settings to its disk, where the node sees them under /run/node.
func (c *Cluster) nodeMachine(p Programs, h Host) (Machine, error) {
	disk := c.state(h.Name, "disk")
	m := Machine{
		Disk: disk,
		Units: []Unit{
			{Name: "containerd", Env: lessGC, Command: []string{"containerd", "--config", "/run/node/containerd.toml", "--log-level", "warn"}},
			{Name: "kubelet", Wait: "/run/containerd/containerd.sock", Env: lessGC, Command: []string{
				p.kube("kubelet"), "--config=/run/node/kubelet.yaml", "--kubeconfig=/run/node/pki/kubelet.kubeconfig", "--root-dir=/run/node/kubelet",
				"--hostname-override=" + h.Name, "--node-ip=" + c.address(h.Last),
				fmt.Sprintf("--node-labels=%s=zone%d", zoneLabel, h.Node),
				"--housekeeping-interval=20s", "--v=1",
			}},
			c.kubeProxy(p, h.Name, ""),
		},
	}
	for name, content := range map[string]string{
		"containerd.toml":      containerdConfig,
		"kubelet.yaml":         strings.NewReplacer("@GROUP@", c.group(h.Name), "@DNS@", c.serviceIP(10)).Replace(kubeletConfig),
		"cni/10-node.conflist": strings.NewReplacer("@SUBNET@", c.podNet(h.Node)).Replace(cniConfig),
	} {
		if err := writeFile(disk+"/"+name, []byte(content), 0o644); err != nil {
			return m, err
		}
	}
	return m, os.MkdirAll(disk+"/volumes", 0o755)
}

// Root is not allowed to lower an OOM score here (no CAP_SYS_RESOURCE): hence restrict_oom_score_adj.
const containerdConfig = `version = 2
root = "/run/node/containerd"
oom_score = 0
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.aufs", "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing"]

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "` + pauseImage + `"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "/run/node/cni"
`

const cniConfig = `{
  "cniVersion": "0.4.0", "name": "pods",
  "plugins": [
    {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
     "ipam": {"type": "host-local", "dataDir": "/run/ipam", "ranges": [[{"subnet": "@SUBNET@"}]], "routes": [{"dst": "0.0.0.0/0"}]}}
  ]
}
`

const kubeletConfig = `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: /run/node/pki/ca.crt}}
authorization: {mode: Webhook}
tlsCertFile: /run/node/pki/kubelet.crt
tlsPrivateKeyFile: /run/node/pki/kubelet.key
cgroupDriver: cgroupfs
cgroupRoot: "@GROUP@"
cgroupsPerQOS: true
enforceNodeAllocatable: []
failSwapOn: false
oomScoreAdj: 0
clusterDNS: ["@DNS@"]
clusterDomain: cluster.local
resolvConf: ""
podLogsDir: /run/node/pods
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
# There is nowhere to pull an image from again.
imageMinimumGCAge: 24h
imageGCHighThresholdPercent: 100
evictionHard: {memory.available: 100Mi, nodefs.available: 1%, imagefs.available: 1%}
registryPullQPS: 0
kubeAPIQPS: 100
kubeAPIBurst: 200
readOnlyPort: 0
enableControllerAttachDetach: false
`
