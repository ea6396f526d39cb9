// provisioner makes the volumes of the test cluster's StorageClass: each a file of the requested size with ext4 in it, on a
// loop device, so that a full disk is full and a disk can be frozen. It runs outside the nodes: a node that loses power
// loses its processes, not its disks.
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	core "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/util/workqueue"
)

const (
	name               = "pgwarden.test/loop"
	nodeVolumes        = "/run/node/volumes" // where a node sees its volumes
	provisionedBy      = "pv.kubernetes.io/provisioned-by"
	selectedNode       = "volume.kubernetes.io/selected-node"
	storageProvisioner = "volume.kubernetes.io/storage-provisioner"
)

type provisioner struct {
	state   string
	client  kubernetes.Interface
	claims  func(namespace, name string) (*core.PersistentVolumeClaim, error)
	volumes func(name string) (*core.PersistentVolume, error)
	queue   workqueue.TypedRateLimitingInterface[string]
}

func main() {
	kubeconfig := flag.String("kubeconfig", "", "how to reach the API server")
	state := flag.String("state", "", "the cluster's directory, with one directory per node")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()

	config, err := clientcmd.BuildConfigFromFlags("", *kubeconfig)
	if err != nil {
		log.Fatal(err)
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		log.Fatal(err)
	}
	factory := informers.NewSharedInformerFactory(client, 0)
	claims, volumes := factory.Core().V1().PersistentVolumeClaims(), factory.Core().V1().PersistentVolumes()
	p := &provisioner{
		state: *state, client: client,
		claims: func(namespace, name string) (*core.PersistentVolumeClaim, error) {
			return claims.Lister().PersistentVolumeClaims(namespace).Get(name)
		},
		volumes: volumes.Lister().Get,
		queue:   workqueue.NewTypedRateLimitingQueue(workqueue.DefaultTypedControllerRateLimiter[string]()),
	}
	// A claim's key has a slash in it, a volume's has none.
	enqueue := cache.ResourceEventHandlerFuncs{
		AddFunc:    p.enqueue,
		UpdateFunc: func(_, object any) { p.enqueue(object) },
	}
	for _, informer := range []cache.SharedIndexInformer{claims.Informer(), volumes.Informer()} {
		if _, err := informer.AddEventHandler(enqueue); err != nil {
			log.Fatal(err)
		}
	}
	factory.Start(ctx.Done())
	factory.WaitForCacheSync(ctx.Done())
	go func() {
		<-ctx.Done()
		p.queue.ShutDown()
	}()
	for {
		key, done := p.queue.Get()
		if done {
			return
		}
		if err := p.reconcile(ctx, key); err != nil {
			log.Printf("%s: %v", key, err)
			p.queue.AddRateLimited(key)
		} else {
			p.queue.Forget(key)
		}
		p.queue.Done(key)
	}
}

func (p *provisioner) enqueue(object any) {
	if key, err := cache.MetaNamespaceKeyFunc(object); err == nil {
		p.queue.Add(key)
	}
}

func (p *provisioner) reconcile(ctx context.Context, key string) error {
	namespace, object, err := cache.SplitMetaNamespaceKey(key)
	if err != nil {
		return err
	}
	if namespace == "" {
		volume, err := p.volumes(object)
		if err == nil {
			err = p.reclaim(ctx, volume)
		}
		return ignoreGone(err)
	}
	claim, err := p.claims(namespace, object)
	if err != nil {
		return ignoreGone(err)
	}
	if claim.DeletionTimestamp != nil || claim.Spec.VolumeName != "" || claim.Annotations[storageProvisioner] != name {
		return nil
	}
	if node := claim.Annotations[selectedNode]; node != "" {
		return p.provision(ctx, claim, node)
	}
	return nil
}

func ignoreGone(err error) error {
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

func (p *provisioner) provision(ctx context.Context, claim *core.PersistentVolumeClaim, node string) error {
	size := claim.Spec.Resources.Requests[core.ResourceStorage]
	// The name says whose it is, so that a volume is found when the API server is down.
	id := fmt.Sprintf("%s.%s.%.8s", claim.Namespace, claim.Name, claim.UID)
	if err := p.makeDisk(node, id, size.Value()); err != nil {
		return err
	}
	class := *claim.Spec.StorageClassName
	mode := core.PersistentVolumeFilesystem
	volume := &core.PersistentVolume{
		ObjectMeta: meta.ObjectMeta{Name: "pvc-" + string(claim.UID), Annotations: map[string]string{provisionedBy: name}},
		Spec: core.PersistentVolumeSpec{
			StorageClassName: class, VolumeMode: &mode, AccessModes: claim.Spec.AccessModes,
			PersistentVolumeReclaimPolicy: core.PersistentVolumeReclaimDelete,
			Capacity:                      core.ResourceList{core.ResourceStorage: size},
			PersistentVolumeSource:        core.PersistentVolumeSource{Local: &core.LocalVolumeSource{Path: filepath.Join(nodeVolumes, id)}},
			ClaimRef: &core.ObjectReference{Kind: "PersistentVolumeClaim", APIVersion: "v1", Namespace: claim.Namespace,
				Name: claim.Name, UID: claim.UID},
			NodeAffinity: &core.VolumeNodeAffinity{Required: &core.NodeSelector{NodeSelectorTerms: []core.NodeSelectorTerm{{
				MatchExpressions: []core.NodeSelectorRequirement{{Key: core.LabelHostname, Operator: core.NodeSelectorOpIn, Values: []string{node}}},
			}}}},
		},
	}
	_, err := p.client.CoreV1().PersistentVolumes().Create(ctx, volume, meta.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		return nil
	}
	return err
}

// reclaim deletes a released volume with its disk.
func (p *provisioner) reclaim(ctx context.Context, volume *core.PersistentVolume) error {
	if volume.Annotations[provisionedBy] != name || volume.Status.Phase != core.VolumeReleased ||
		volume.Spec.PersistentVolumeReclaimPolicy != core.PersistentVolumeReclaimDelete {
		return nil
	}
	node, id := place(volume)
	if err := p.removeDisk(node, id); err != nil {
		return err
	}
	return ignoreGone(p.client.CoreV1().PersistentVolumes().Delete(ctx, volume.Name, meta.DeleteOptions{}))
}

// place reads node and id back from where provision wrote them.
func place(volume *core.PersistentVolume) (node, id string) {
	return volume.Spec.NodeAffinity.Required.NodeSelectorTerms[0].MatchExpressions[0].Values[0], filepath.Base(volume.Spec.Local.Path)
}

func (p *provisioner) paths(node, id string) (file, point string) {
	return filepath.Join(p.state, node, "images", id+".img"), filepath.Join(p.state, node, "disk/volumes", id)
}

func (p *provisioner) makeDisk(node, id string, size int64) error {
	file, point := p.paths(node, id)
	if mounted(point) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	disk, err := os.Create(file)
	if err != nil {
		return err
	}
	defer disk.Close()
	if err := disk.Truncate(size); err != nil {
		return err
	}
	// No blocks reserved for root: the size that was asked for is the size there is. Tables are zero already in a new file.
	if err := run("mkfs.ext4", "-q", "-F", "-b", "4096", "-m", "0", "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard", file); err != nil {
		return err
	}
	if err := os.MkdirAll(point, 0o755); err != nil {
		return err
	}
	return run("mount", "-o", "loop,noinit_itable", file, point)
}

func (p *provisioner) removeDisk(node, id string) error {
	file, point := p.paths(node, id)
	if mounted(point) {
		if err := syscall.Unmount(point, 0); err != nil {
			return fmt.Errorf("unmount %s: %w", point, err)
		}
	}
	for _, path := range []string{point, file} {
		if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
			return err
		}
	}
	return nil
}

func mounted(point string) bool {
	return exec.Command("mountpoint", "-q", point).Run() == nil
}

func run(program string, args ...string) error {
	if output, err := exec.Command(program, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", program, strings.Join(args, " "), err, strings.TrimSpace(string(output)))
	}
	return nil
}
