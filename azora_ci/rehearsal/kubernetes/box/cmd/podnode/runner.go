package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	core "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

const (
	killSignal = syscall.SIGKILL
	probeEvery = 200 * time.Millisecond // shorter than any kubelet's: a rehearsal has little time
	pullEvery  = time.Second
	longest    = 30 * time.Second // between two starts of a container that ends by itself
)

// runner runs one pod: its only container, again and again until the pod is deleted.
type runner struct {
	node    *node
	pod     *core.Pod
	address string
	leaving bool          // guarded by node.mu
	halt    chan struct{} // closed when nothing of it may be started any more
	ended   chan struct{} // closed when nothing of it runs any more

	mu       sync.Mutex
	process  *os.Process // the container's first process, which leads a group; nil while none runs
	halted   bool
	status   core.ContainerStatus
	changed  metav1.Time // when readiness changed
	reported sync.Mutex  // one report at a time, in order
}

func newRunner(n *node, pod *core.Pod) *runner {
	container := pod.Spec.Containers[0]
	status := core.ContainerStatus{Name: container.Name, Image: container.Image, ImageID: container.Image}
	return &runner{node: n, pod: pod, halt: make(chan struct{}), ended: make(chan struct{}), status: status, changed: metav1.Now()}
}

// run starts the container as often as it ends, with a back-off, and waits for an image that is not there.
func (r *runner) run() {
	defer close(r.ended)
	defer r.node.release(r.address)
	for pause := time.Second; ; pause = min(2*pause, longest) {
		command, err := r.command()
		for ; err != nil; command, err = r.command() {
			r.report(func(s *core.ContainerStatus) { s.State = waiting(reason(err), err.Error()) })
			if !r.pause(pullEvery) {
				return
			}
		}
		state, ran := r.once(command)
		if !ran {
			return
		}
		r.report(func(s *core.ContainerStatus) {
			s.RestartCount++
			s.LastTerminationState = state
			s.State = waiting("CrashLoopBackOff", fmt.Sprintf("back-off %s", pause))
		})
		if !r.pause(pause) {
			return
		}
	}
}

// once runs the container until it ends and returns how; false when it may not start any more, or was told to end.
func (r *runner) once(command *exec.Cmd) (core.ContainerState, bool) {
	output, err := os.OpenFile(r.log(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err == nil {
		defer output.Close()
		command.Stdout, command.Stderr = output, output
	}
	r.mu.Lock()
	if r.halted {
		r.mu.Unlock()
		return core.ContainerState{}, false
	}
	if err = command.Start(); err == nil {
		r.process = command.Process
	}
	r.mu.Unlock()
	begun := metav1.Now()
	if err != nil {
		return terminated(128, err.Error(), begun), true
	}
	ctx, stopProbe := context.WithCancel(context.Background())
	r.report(func(s *core.ContainerStatus) {
		s.ContainerID = fmt.Sprintf("process://%d", command.Process.Pid)
		s.State = core.ContainerState{Running: &core.ContainerStateRunning{StartedAt: begun}}
		s.Ready = r.pod.Spec.Containers[0].ReadinessProbe == nil
	})
	go r.probe(ctx)
	_ = command.Wait() // its code is in ProcessState
	stopProbe()
	r.signal(killSignal) // what it left behind
	r.mu.Lock()
	r.process = nil
	halted := r.halted
	r.mu.Unlock()
	return terminated(int32(command.ProcessState.ExitCode()), "Error", begun), !halted
}

// leave ends the container as a kubelet does, then removes the pod from the API server.
func (r *runner) leave(pod *core.Pod) {
	grace := 30 * time.Second
	if pod.DeletionGracePeriodSeconds != nil {
		grace = time.Duration(*pod.DeletionGracePeriodSeconds) * time.Second
	}
	timeout := time.After(grace)
	if hook := pod.Spec.Containers[0].Lifecycle; hook != nil && hook.PreStop != nil && hook.PreStop.Sleep != nil {
		select {
		case <-time.After(time.Duration(hook.PreStop.Sleep.Seconds) * time.Second):
		case <-timeout:
		case <-r.ended:
		}
	}
	r.stop(syscall.SIGTERM)
	select {
	case <-r.ended:
	case <-timeout:
		r.kill()
	}
	now := int64(0)
	options := metav1.DeleteOptions{GracePeriodSeconds: &now, Preconditions: &metav1.Preconditions{UID: &pod.UID}}
	for {
		err := r.node.client.CoreV1().Pods(pod.Namespace).Delete(context.Background(), pod.Name, options)
		if err == nil || gone(err) {
			return
		}
		time.Sleep(probeEvery) // the API server is away
	}
}

func (r *runner) kill() {
	r.stop(killSignal)
	<-r.ended
}

// stop lets no further process start and signals the one that runs.
func (r *runner) stop(number syscall.Signal) {
	r.mu.Lock()
	if !r.halted {
		r.halted = true
		close(r.halt)
	}
	r.mu.Unlock()
	r.signal(number)
}

func (r *runner) signal(number syscall.Signal) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.process != nil {
		_ = syscall.Kill(-r.process.Pid, number) // its group; it may have ended
	}
}

// pause waits, and says whether the pod may go on.
func (r *runner) pause(d time.Duration) bool {
	select {
	case <-r.halt:
		return false
	case <-time.After(d):
		return true
	}
}

func (r *runner) log() string {
	return filepath.Join(r.node.logs, r.pod.Namespace+"_"+r.pod.Name+".log")
}

// probe asks the readiness probe and reports each change: ready at the first success, not ready after failureThreshold failures.
func (r *runner) probe(ctx context.Context) {
	probe := r.pod.Spec.Containers[0].ReadinessProbe
	if probe == nil || probe.HTTPGet == nil {
		return
	}
	url := fmt.Sprintf("http://%s:%d%s", r.address, r.port(probe.HTTPGet.Port.String()), probe.HTTPGet.Path)
	client := http.Client{Timeout: time.Duration(max(1, probe.TimeoutSeconds)) * time.Second}
	ready, failures := false, 0
	for range tick(ctx) {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return
		}
		healthy := false
		if answer, err := client.Do(request); err == nil {
			healthy = answer.StatusCode < 400
			answer.Body.Close()
		}
		if failures++; healthy {
			failures = 0
		}
		if ctx.Err() == nil && (healthy && !ready || ready && failures >= int(max(1, probe.FailureThreshold))) {
			ready = healthy
			r.report(func(s *core.ContainerStatus) { s.Ready = healthy })
		}
	}
}

func tick(ctx context.Context) func(func() bool) {
	return func(yield func() bool) {
		for ctx.Err() == nil && yield() {
			select {
			case <-ctx.Done():
			case <-time.After(probeEvery):
			}
		}
	}
}

// port returns the number of a port that is given by number or by name; 0 for an unknown name.
func (r *runner) port(text string) int {
	var number int
	if _, err := fmt.Sscanf(text, "%d", &number); err == nil {
		return number
	}
	for _, port := range r.pod.Spec.Containers[0].Ports {
		if port.Name == text {
			return int(port.ContainerPort)
		}
	}
	return 0
}

func waiting(reason, message string) core.ContainerState {
	return core.ContainerState{Waiting: &core.ContainerStateWaiting{Reason: reason, Message: message}}
}

func terminated(code int32, reason string, begun metav1.Time) core.ContainerState {
	return core.ContainerState{Terminated: &core.ContainerStateTerminated{ExitCode: code, Reason: reason, StartedAt: begun, FinishedAt: metav1.Now()}}
}

// report changes the container's status and writes the pod's. A container that does not run is not ready.
func (r *runner) report(change func(*core.ContainerStatus)) {
	r.reported.Lock()
	defer r.reported.Unlock()
	was := r.status.Ready
	change(&r.status)
	running := r.status.State.Running != nil
	r.status.Started = &running
	r.status.Ready = r.status.Ready && running
	if was != r.status.Ready {
		r.changed = metav1.Now()
	}
	phase := core.PodPending
	if running || r.status.RestartCount > 0 {
		phase = core.PodRunning
	}
	conditions := []core.PodCondition{{Type: core.PodInitialized, Status: core.ConditionTrue, LastTransitionTime: r.pod.CreationTimestamp}}
	for _, kind := range []core.PodConditionType{core.ContainersReady, core.PodReady} {
		condition := core.PodCondition{Type: kind, Status: core.ConditionFalse, LastTransitionTime: r.changed}
		if r.status.Ready {
			condition.Status = core.ConditionTrue
		}
		conditions = append(conditions, condition)
	}
	status := map[string]any{
		"phase": phase, "hostIP": r.node.address(), "podIP": r.address, "podIPs": []core.PodIP{{IP: r.address}}, "startTime": r.pod.CreationTimestamp,
		"conditions": conditions, "containerStatuses": []core.ContainerStatus{r.status},
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": r.pod.UID}, "status": status})
	for err == nil { // until it is heard: the API server may be away for a while
		_, err = r.node.client.CoreV1().Pods(r.pod.Namespace).Patch(context.Background(), r.pod.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
		if err == nil || gone(err) || !r.pause(probeEvery) {
			return
		}
		fmt.Fprintln(os.Stderr, "status of", r.pod.Name+":", err)
		err = nil
	}
}

func reason(err error) string {
	if errors.Is(err, fs.ErrNotExist) {
		return "ErrImagePull"
	}
	return "CreateContainerConfigError"
}
