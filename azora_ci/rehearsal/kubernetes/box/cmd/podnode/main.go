// podnode is a virtual node. Every pod that the scheduler binds to it runs as one process of this machine on an address of its own,
// NETWORK.2 to NETWORK.254. An image is an executable, found by its digest: IMAGES/sha256/HEX;
// or an image of a registry on this machine, which is pulled by its digest and runs in a root file system of its own (needs root).
//
// It does what a deployment can observe of the kubelet: readiness probes, restarts with a back-off, SIGTERM and a grace period,
// ErrImagePull, logs and port forwarding through the API server, and heartbeats of the node.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

func main() {
	kubeconfig := flag.String("kubeconfig", "", "how to reach the API server")
	name := flag.String("name", "podnode", "name of the node")
	network := flag.String("network", "127.77.0", "first three bytes of the addresses of the node (.1) and its pods")
	images := flag.String("images", "", "folder of the images")
	logs := flag.String("logs", "", "folder for what pods print; they work there, too")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	config, err := clientcmd.BuildConfigFromFlags("", *kubeconfig)
	if err != nil {
		fail(err)
	}
	config.QPS, config.Burst = 200, 400
	n := newNode(kubernetes.NewForConfigOrDie(config), *name, *network, *images, *logs)
	if err := n.serve(); err != nil { // before it is registered: another node may have the same addresses
		fail(err)
	}
	for n.register(ctx) != nil { // the API server may not be ready
		select {
		case <-ctx.Done():
			return
		case <-time.After(200 * time.Millisecond):
		}
	}
	go n.beat(ctx)
	ours := informers.WithTweakListOptions(func(options *metav1.ListOptions) {
		options.FieldSelector = fields.OneTermEqualSelector("spec.nodeName", *name).String()
	})
	factory := informers.NewSharedInformerFactoryWithOptions(n.client, 30*time.Second, ours)
	if _, err := factory.Core().V1().Pods().Informer().AddEventHandler(n); err != nil {
		fail(err)
	}
	factory.Start(ctx.Done())
	fmt.Fprintln(os.Stderr, "podnode ready")
	<-ctx.Done()
	n.killAll()
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}
