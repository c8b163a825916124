package main

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"sync"
	"time"

	coordination "k8s.io/api/coordination/v1"
	core "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

const (
	beatSeconds = 2
	leaseSpace  = "kube-node-lease"
	most        = 200 // pods
)

// node keeps a runner for every pod that is bound to it. It is the handler of the pods' events.
type node struct {
	client  kubernetes.Interface
	name    string
	network string
	images  *store
	logs    string

	mu      sync.Mutex
	runners map[types.UID]*runner
	used    map[int]bool // last bytes of addresses
	last    int
}

func newNode(client kubernetes.Interface, name, network, images, logs string) *node {
	return &node{client: client, name: name, network: network, images: &store{folder: images}, logs: logs, runners: map[types.UID]*runner{}, used: map[int]bool{}, last: 1}
}

func (n *node) address() string { return n.network + ".1" }

// register makes the node, or the one that had its name, a ready one.
func (n *node) register(ctx context.Context) error {
	nodes := n.client.CoreV1().Nodes()
	labels := map[string]string{"kubernetes.io/hostname": n.name, "kubernetes.io/os": runtime.GOOS, "kubernetes.io/arch": runtime.GOARCH}
	current, err := nodes.Create(ctx, &core.Node{ObjectMeta: metav1.ObjectMeta{Name: n.name, Labels: labels}}, metav1.CreateOptions{})
	if errors.IsAlreadyExists(err) {
		current, err = nodes.Get(ctx, n.name, metav1.GetOptions{})
	}
	if err != nil {
		return err
	}
	current.Spec.Taints = nil // new nodes are tainted as not ready until a controller has seen them
	if current, err = nodes.Update(ctx, current, metav1.UpdateOptions{}); err != nil {
		return err
	}
	plenty := core.ResourceList{"cpu": resource.MustParse("64"), "memory": resource.MustParse("64Gi"), "pods": *resource.NewQuantity(most, resource.DecimalSI)}
	now := metav1.Now()
	current.Status = core.NodeStatus{
		Capacity:        plenty,
		Allocatable:     plenty,
		Addresses:       []core.NodeAddress{{Type: core.NodeInternalIP, Address: n.address()}},
		DaemonEndpoints: core.NodeDaemonEndpoints{KubeletEndpoint: core.DaemonEndpoint{Port: kubeletPort}},
		Conditions:      []core.NodeCondition{{Type: core.NodeReady, Status: core.ConditionTrue, Reason: "PodnodeReady", LastHeartbeatTime: now, LastTransitionTime: now}},
		NodeInfo:        core.NodeSystemInfo{KubeletVersion: "podnode", OperatingSystem: runtime.GOOS, Architecture: runtime.GOARCH},
	}
	_, err = nodes.UpdateStatus(ctx, current, metav1.UpdateOptions{})
	return err
}

// beat renews the node's lease; without it the node is soon said to be lost, which it takes back when it can.
func (n *node) beat(ctx context.Context) {
	leases, seconds := n.client.CoordinationV1().Leases(leaseSpace), int32(40)
	for {
		now := metav1.NowMicro()
		spec := coordination.LeaseSpec{HolderIdentity: &n.name, LeaseDurationSeconds: &seconds, RenewTime: &now}
		lease, err := leases.Get(ctx, n.name, metav1.GetOptions{})
		if err == nil {
			lease.Spec = spec
			_, err = leases.Update(ctx, lease, metav1.UpdateOptions{})
		} else if errors.IsNotFound(err) {
			_, err = leases.Create(ctx, &coordination.Lease{ObjectMeta: metav1.ObjectMeta{Name: n.name}, Spec: spec}, metav1.CreateOptions{})
		}
		if err == nil && !n.isReady(ctx) {
			err = n.register(ctx)
		}
		if err != nil && ctx.Err() == nil {
			fmt.Fprintln(os.Stderr, "lease:", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(beatSeconds * time.Second):
		}
	}
}

func (n *node) isReady(ctx context.Context) bool {
	current, err := n.client.CoreV1().Nodes().Get(ctx, n.name, metav1.GetOptions{})
	if err != nil {
		return !errors.IsNotFound(err) // otherwise it is not known now
	}
	for _, condition := range current.Status.Conditions {
		if condition.Type == core.NodeReady {
			return condition.Status == core.ConditionTrue
		}
	}
	return false
}

// OnAdd, OnUpdate and OnDelete are what the API server tells about pods. It tells every pod again every 30 s.
func (n *node) OnAdd(object any, _ bool) { n.observe(object.(*core.Pod)) }
func (n *node) OnUpdate(_, object any)   { n.observe(object.(*core.Pod)) }
func (n *node) OnDelete(object any) {
	if unknown, ok := object.(cache.DeletedFinalStateUnknown); ok {
		object = unknown.Obj
	}
	if pod, ok := object.(*core.Pod); ok {
		n.mu.Lock()
		r := n.runners[pod.UID]
		delete(n.runners, pod.UID)
		n.mu.Unlock()
		if r != nil { // removed by force, or by us when its process had ended
			go r.kill()
		}
	}
}

func (n *node) observe(pod *core.Pod) {
	n.mu.Lock()
	defer n.mu.Unlock()
	r := n.runners[pod.UID]
	if r == nil {
		if pod.Status.Phase == core.PodSucceeded || pod.Status.Phase == core.PodFailed {
			return
		}
		r = newRunner(n, pod.DeepCopy())
		n.runners[pod.UID] = r
		if pod.DeletionTimestamp == nil {
			r.address = n.take()
			go r.run()
		} else {
			close(r.ended) // it was of an earlier life of this node
		}
	}
	if pod.DeletionTimestamp != nil && !r.leaving {
		r.leaving = true
		go r.leave(pod.DeepCopy())
	}
}

// take returns an address that no pod has. The one that was used longest ago comes last, so that nobody mistakes a new pod for an old one.
func (n *node) take() string {
	for range most + 1 {
		n.last++
		if n.last > 254 {
			n.last = 2
		}
		if !n.used[n.last] {
			break
		}
	}
	n.used[n.last] = true
	return fmt.Sprintf("%s.%d", n.network, n.last)
}

func (n *node) release(address string) {
	var last int
	fmt.Sscanf(address[len(n.network)+1:], "%d", &last)
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.used, last)
}

func (n *node) killAll() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, r := range n.runners {
		r.signal(killSignal)
	}
}
